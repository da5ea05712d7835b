"""Makes a camera's frame cache: decoded by loader workers, side by side, each written where it belongs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from preflight.data.atomic import explain, folder_lock
from preflight.data.batch_reading import OnBadSample
from preflight.data.cameras import Cameras
from preflight.data.frame_identity import FrameIdentity
from preflight.data.frame_store import CHECKSUMS, DESCRIPTION, DONE, FRAMES, PARTIAL, describe, open_stored, remove
from preflight.data.kept_frames import FRAME_BYTES, FRAME_SHAPE, Square
from preflight.data.loader import BatchLoader, start_worker_server
from preflight.data.shared_array import SharedArray
from preflight.errors import DataError, PreflightError

# Frames that are decoded and written in one go: some MiB.
_AT_ONCE = 32
# Frames of a piece of work. The longer, the fewer times a decoder begins in the middle of a group of pictures; but all
# workers should have some.
_PIECE_AT_LEAST, _PIECE_AT_MOST, _PIECES_A_WORKER = _AT_ONCE, 512, 8
# A piece of large pictures with long groups of pictures takes minutes where CPUs are few.
_TIMEOUT_S = 900.0
_THERE, _BAD = 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildRules:
    """How caches are made."""

    num_workers: int  # at least 1
    on_bad_sample: OnBadSample = "raise"
    max_skipped: int = 100


class Pieces:
    """A map-style dataset whose item `first` is the work of decoding and writing the frames from `first` on.

    Args:
        cameras: Which decode.
        identity: Of the frames.
        path: The file that they are written into.
        piece: Frames of an item.
        checksums: uint32[n], of frames that an interrupted build has written.
        done: uint8[n], which those are; they are read and compared, and made again where they differ.
    """

    def __init__(
        self,
        cameras: Cameras,
        identity: FrameIdentity,
        path: Path,
        piece: int,
        checksums: SharedArray,
        done: SharedArray,
    ) -> None:
        self._cameras, self._identity, self._path, self._piece = cameras, identity, path, piece
        self._checksums, self._done = checksums, done

    def __len__(self) -> int:
        return self._identity.frames + 1

    def __getitem__(self, first: int) -> dict[str, Any]:
        """The checksums of the piece's frames, 1 or 2 of each as `done.bin` has it, and the number of a write error.

        Item n, behind the last frame, is no work at all.
        """
        stop = min(first + self._piece, self._identity.frames)
        checksums, done = np.zeros(stop - first, np.uint32), np.zeros(stop - first, np.uint8)
        if first == stop:
            return {"checksums": checksums, "done": done, "error": np.int64(0)}
        error = 0
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                for begin in range(first, stop, _AT_ONCE):
                    some = range(begin, min(begin + _AT_ONCE, stop))
                    place = slice(begin - first, some.stop - first)
                    if not self._is_there(descriptor, some):
                        checksums[place], done[place] = self._written(descriptor, some)
                    else:
                        checksums[place], done[place] = (
                            kept.array[begin : some.stop] for kept in (self._checksums, self._done)
                        )
            finally:
                os.close(descriptor)
        except OSError as raised:
            error = raised.errno or -1
        return {"checksums": checksums, "done": done, "error": np.int64(error)}

    def _is_there(self, descriptor: int, some: range) -> bool:
        if not (self._done.array[some.start : some.stop] == _THERE).all():
            return False
        written = os.pread(descriptor, len(some) * FRAME_BYTES, some.start * FRAME_BYTES)
        return len(written) == len(some) * FRAME_BYTES and all(
            zlib.crc32(memoryview(written)[i * FRAME_BYTES : (i + 1) * FRAME_BYTES]) == self._checksums.array[index]
            for i, index in enumerate(some)
        )

    def _written(self, descriptor: int, some: range) -> tuple[list[int], list[int]]:
        key = self._identity.camera
        try:
            squares: list[Square | None] = list(self._cameras.decoded(some, key))
        except DataError:
            squares = [self._alone(index) for index in some]
        block = np.zeros((len(some), *FRAME_SHAPE), np.uint8)
        for row, square in zip(block, squares, strict=True):
            if square is not None:
                row[...] = square
        content, at = block.data.cast("B"), some.start * FRAME_BYTES
        while content:
            wrote = os.pwrite(descriptor, content, at)
            content, at = content[wrote:], at + wrote
        return [zlib.crc32(row.data) for row in block], [_BAD if square is None else _THERE for square in squares]

    def _alone(self, index: int) -> Square | None:
        try:
            return self._cameras.decoded([index], self._identity.camera)[0]
        except DataError:
            return None  # who wants to know why decodes it again


def build_frames(
    place: Path,
    root: Path,
    identity: FrameIdentity,
    cameras: Cameras,
    *,
    rules: BuildRules,
    say: Callable[[str], None],
    progress: Callable[[int], None],
) -> None:
    """Makes one camera's cache, or goes on where an interrupted process has stopped; where it is there, does nothing.

    It appears in one step, when it is whole. What an error leaves is removed, what a kill or Ctrl-C leaves is gone on
    with the next time.

    Args:
        place: The cache's folder.
        root: The dataset's.
        identity: What the frames are made of; looked at again at the end.
        cameras: Which decode.
        rules: How.
        say: Told what takes long, and of frames that do not decode.
        progress: Told how many further frames are done.

    Raises:
        DataError: if a frame does not decode and may not be skipped, or the dataset has changed meanwhile.
        PreflightError: if the cache cannot be written.
    """
    made = _missing_parents(place)
    try:
        with folder_lock(place, lambda: say(f"another process makes {place.name}: waiting for it")) as locked:
            if _is_whole(place, identity):
                progress(identity.frames)
                return
            partial = place.with_name(f".{place.name}{'' if locked else f'.{os.getpid()}'}{PARTIAL}")
            try:
                _fill(partial, root, identity, cameras, rules, say, progress)
                if cameras.identity(identity.camera) != identity:
                    raise DataError(
                        f"{root} has changed while its frames were decoded", "Leave it alone, and start again."
                    )
                if place.exists():
                    remove(place)  # damaged
                partial.rename(place)
            except KeyboardInterrupt:
                say(f"what there is of {place.name} is kept; the next time goes on from there")
                raise
            except OSError as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise explain(error, place) from error
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except KeyboardInterrupt:
        raise
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _fill(
    partial: Path,
    root: Path,
    identity: FrameIdentity,
    cameras: Cameras,
    rules: BuildRules,
    say: Callable[[str], None],
    progress: Callable[[int], None],
) -> None:
    count = identity.frames
    partial.mkdir(exist_ok=True)
    (partial / DESCRIPTION).write_text(json.dumps(describe(root, identity)))
    for name, size in ((FRAMES, FRAME_BYTES), (CHECKSUMS, 4), (DONE, 1)):
        with (partial / name).open("ab") as file:
            file.truncate(count * size)
    checksums, done = SharedArray((count,), np.dtype(np.uint32)), SharedArray((count,), np.dtype(np.uint8))
    checksums.array[:] = np.fromfile(partial / CHECKSUMS, np.uint32)
    done.array[:] = np.fromfile(partial / DONE, np.uint8)
    if before := int((done.array == _THERE).sum()):
        say(f"going on with {partial.name[1 : -len(PARTIAL)]}: {before:,} of {count:,} frames were there")
    piece = min(max(_PIECE_AT_LEAST, -(-count // (_PIECES_A_WORKER * rules.num_workers))), _PIECE_AT_MOST)
    pieces = Pieces(cameras, identity, partial / FRAMES, piece, checksums, done)
    total = -(-count // piece)
    missing: list[tuple[int, str]] = []

    def order(batch: int) -> np.ndarray:
        return np.array([batch * piece if batch < total else count])

    start_worker_server()
    with (
        BatchLoader(
            pieces,
            batch_size=1,
            num_workers=min(rules.num_workers, total),
            order=order,
            timeout_s=_TIMEOUT_S,
            max_worker_restarts=3,
            warn=say,
        ) as loader,
        (partial / CHECKSUMS).open("r+b") as sums,
        (partial / DONE).open("r+b") as states,
    ):
        for first in range(0, count, piece):
            found = next(loader)
            if error := int(found["error"][0]):
                raise OSError(error, os.strerror(error) if error > 0 else "unknown error")
            of_piece = found["done"][0]
            for offset in np.flatnonzero(of_piece == _BAD).tolist():
                missing.append((first + offset, _reason(cameras, identity, first + offset, len(missing), rules)))
                say(f"sample {first + offset} will be skipped, its frame cannot be kept: {missing[-1][1]}")
            os.pwrite(sums.fileno(), found["checksums"][0].tobytes(), first * 4)
            # After the checksums: with a kill between the two, the piece is made again.
            os.pwrite(states.fileno(), of_piece.tobytes(), first)
            progress(len(of_piece))
    (partial / DESCRIPTION).write_text(json.dumps(describe(root, identity, missing)))
    (partial / DONE).unlink()
    for name in (FRAMES, CHECKSUMS, DESCRIPTION):
        # A cache that has its name after a power cut has its content, too.
        with (partial / name).open("rb") as whole:
            os.fsync(whole.fileno())


def _reason(cameras: Cameras, identity: FrameIdentity, index: int, before: int, rules: BuildRules) -> str:
    """Why a frame does not decode, where that is no reason to stop."""
    try:
        cameras.decoded([index], identity.camera)
    except DataError as error:
        message, hint = f"sample {index} cannot be loaded: {error.message}", error.hint
        if rules.on_bad_sample == "raise":
            skip = "or set data.on_bad_sample=skip"
            raise DataError(message, f"{hint} {skip[0].upper()}{skip[1:]}." if hint else f"Mend it, {skip}.") from error
        if before >= rules.max_skipped:
            raise DataError(
                f"{before + 1} samples cannot be loaded, and max_skipped is {rules.max_skipped}; the last one is "
                f"{message}",
                "Mend the dataset, or raise data.max_skipped.",
            ) from error
        return error.message
    raise PreflightError(
        f"sample {index} could not be decoded in a worker and can be here", "A failing disk, or RAM, does such things."
    )


def _is_whole(place: Path, identity: FrameIdentity) -> bool:
    try:
        open_stored(place, identity)
    except (OSError, DataError):
        return False
    return True


def _missing_parents(place: Path) -> list[Path]:
    """The folders above it that do not exist, the innermost first."""
    return [folder for folder in place.parents if not folder.exists()]
