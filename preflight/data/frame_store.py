"""Caches of decoded frames on disk: a folder for each camera and identity, checked before any of it is used.

    <dataset>--<camera>--<resize>-<key>/
        cache.json       what it is made of
        frames.bin       uint8[n, 224, 224, 3]
        checksums.bin    uint32[n], CRC-32 of each frame

A cache that is being made has a name that begins with a dot and ends with ".partial", and a further file `done.bin`
(uint8[n]: 0 not yet, 1 there, 2 does not decode).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from preflight.data.frame_identity import FrameIdentity
from preflight.data.kept_frames import FRAME_BYTES, FRAME_SHAPE, KeptFrames
from preflight.data.shared_array import SharedArray
from preflight.errors import DataError

DESCRIPTION, FRAMES, CHECKSUMS, DONE = "cache.json", "frames.bin", "checksums.bin", "done.bin"
PARTIAL = ".partial"
SCHEMA_VERSION = 1

# Frames whose checksum is compared when a cache is opened: both ends, an even spread, and as many drawn anew each time.
_SPREAD, _DRAWN = 32, 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredFrames:
    """One camera's cache as it lies on the disk, whole or not."""

    folder: Path
    description: dict[str, Any]

    @property
    def whole(self) -> bool:
        """Whether it was finished."""
        return not self.folder.name.startswith(".")

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes on the disk."""
        total = 0
        with contextlib.suppress(OSError):  # it is being removed
            for path in self.folder.iterdir():
                status = path.stat()
                total += min(status.st_size, status.st_blocks * 512)  # files that are being made have holes
        return total


def default_folder() -> Path:
    """Where caches lie unless `data.cache_dir` says otherwise: `frames` in preflight's own cache folder."""
    from preflight.data.demo import cache_root

    return cache_root() / "frames"


def place_of(folder: Path, root: Path, identity: FrameIdentity) -> Path:
    """The folder of a camera's cache.

    Args:
        folder: Where caches lie.
        root: The dataset's folder.
        identity: Of the frames.
    """
    stem = re.sub(r"[^\w.-]+", "_", f"{root.resolve().name[:60]}--{identity.camera[:80]}").lstrip(".") or "frames"
    return folder / f"{stem}--{identity.resize}-{identity.key}"


def describe(root: Path, identity: FrameIdentity, missing: Iterable[tuple[int, str]] = ()) -> dict[str, Any]:
    """What `cache.json` holds.

    Args:
        root: The dataset's folder, for people and to find what a newer cache replaces.
        identity: Of the frames.
        missing: Frames that do not decode, and why.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": str(root.resolve()),
        "key": identity.key,
        "identity": dataclasses.asdict(identity),
        "missing": [list(one) for one in missing],
    }


def stored_in(folder: Path) -> list[StoredFrames]:
    """All caches in a folder, finished or not; what is no cache is passed over."""
    found = []
    for path in sorted(folder.glob(f"*/{DESCRIPTION}")):
        if (description := _read(path.parent)) is not None:
            found.append(StoredFrames(folder=path.parent, description=description))
    return found


def replaced_by(folder: Path, root: Path, identity: FrameIdentity) -> list[StoredFrames]:
    """Finished caches of the same camera of the dataset at the same place, scaled alike, that are of something else."""
    return [
        one
        for one in stored_in(folder)
        if one.whole
        and one.description.get("key") != identity.key
        and one.description.get("dataset") == str(root.resolve())
        and all(one.description["identity"].get(name) == getattr(identity, name) for name in ("camera", "resize"))
    ]


def open_stored(place: Path, identity: FrameIdentity) -> KeptFrames:
    """Opens a camera's cache, after a look at its size and at some of its frames.

    Args:
        place: Its folder.
        identity: What it must be of.

    Raises:
        FileNotFoundError: if there is none.
        DataError: if it is damaged; says where.
        OSError: if it cannot be read.
    """
    description = _read(place)
    if description is None:
        if not place.exists():
            raise FileNotFoundError(place)
        raise DataError(f"{place / DESCRIPTION} cannot be read")
    if description.get("key") != identity.key or description["identity"] != dataclasses.asdict(identity):
        raise DataError(f"{place / DESCRIPTION} is of other frames")
    count = identity.frames
    for name, size in ((FRAMES, count * FRAME_BYTES), (CHECKSUMS, count * 4)):
        try:
            has = (place / name).stat().st_size
        except FileNotFoundError:
            raise DataError(f"{place / name} is missing") from None
        if has != size:
            raise DataError(f"{place / name} has {has:,} bytes, not {size:,}")
    frames = SharedArray.of_file(place / FRAMES, (count, *FRAME_SHAPE), np.dtype(np.uint8))
    missing = [int(index) for index, _ in description["missing"]]
    wrong = first_wrong(frames.array, np.fromfile(place / CHECKSUMS, np.uint32), _some(count))
    frames.unmap_pages()
    if wrong is not None:
        raise DataError(f"{place / FRAMES}: frame {wrong} does not have its checksum")
    have = SharedArray((count,), np.dtype(np.uint8))
    have.array[:] = 1
    have.array[missing] = 0
    return KeptFrames(frames, have, fill=False)


def first_wrong(frames: np.ndarray, checksums: np.ndarray, indices: Iterable[int]) -> int | None:
    """The first frame that does not have its checksum; None where all have.

    Args:
        frames: uint8[n, size, size, 3].
        checksums: uint32[n].
        indices: The frames to look at.
    """
    return next((i for i in indices if zlib.crc32(frames[i].data) != checksums[i]), None)


def verify_all(place: Path) -> None:
    """Compares every frame of a cache with its checksum.

    Args:
        place: Its folder; one that `open_stored` opens.

    Raises:
        DataError: names the first frame that differs.
    """
    checksums = np.fromfile(place / CHECKSUMS, np.uint32)
    frames = np.memmap(place / FRAMES, np.uint8, "r", shape=(len(checksums), *FRAME_SHAPE))
    if (wrong := first_wrong(frames, checksums, range(len(checksums)))) is not None:
        raise DataError(f"{place / FRAMES}: frame {wrong} does not have its checksum")


def remove(folder: Path) -> None:
    """Removes a cache, first from where others would find it.

    Raises:
        OSError: if it cannot be removed.
    """
    gone = folder.with_name(f".{folder.name.lstrip('.').removesuffix(PARTIAL)}.gone-{os.getpid()}")
    folder.rename(gone)
    shutil.rmtree(gone)


def _some(count: int) -> list[int]:
    spread = np.linspace(0, count - 1, min(count, _SPREAD)).astype(int)
    return sorted({*spread.tolist(), *np.random.default_rng().integers(count, size=_DRAWN).tolist()})


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError):
        return None
    sound = isinstance(value, dict) and isinstance(value.get("identity"), dict) and isinstance(value["missing"], list)
    return value if sound and value.get("schema_version") == SCHEMA_VERSION else None
