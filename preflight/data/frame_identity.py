"""What a camera's cached frames were made of: where any of it changes, the frames may be others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterable
from typing import Any, Literal

import av
import numpy as np
import PIL

from preflight.config.schema import IMAGE_SIZE
from preflight.data.episodes import Episodes
from preflight.data.metadata import DatasetInfo
from preflight.data.shared_array import SharedArray
from preflight.data.video_signature import signature_of
from preflight.errors import DataError

# Raised when the layout of a cache changes, or what we make of a decoded frame.
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameIdentity:
    """All that decides on the bytes of one camera's frames."""

    camera: str
    frames: int
    resize: str  # as `DataConfig.resize` has it
    made_with: dict[str, str]  # versions of what decodes and scales, and the machine's architecture
    files: str  # hash of the names, sizes and times of change of the files that they lie in
    places: str  # hash of which frame of the dataset lies where in them
    size: int = IMAGE_SIZE
    format: int = _FORMAT

    @property
    def key(self) -> str:
        """The same for equal identities."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def differs_in(self, other: dict[str, Any]) -> str:
        """What has changed since another one's fields were written down, in words."""
        if other.get("made_with") != self.made_with:
            before: Any = other.get("made_with") or {}
            names = sorted(name for name in {*before, *self.made_with} if before.get(name) != self.made_with.get(name))
            was = ", ".join(f"{name} {before.get(name)}" for name in names)
            return f"it was made with {was}; here {', '.join(f'{n} {self.made_with.get(n)}' for n in names)}"
        if other.get("files") != self.files or other.get("places") != self.places:
            return "the dataset's files have changed since it was made"
        return "it was made by another version of preflight"


def identify(
    camera: str,
    resize: Literal["swscale", "pil"],
    info: DatasetInfo,
    episodes: Episodes,
    timestamps: SharedArray | None,
) -> FrameIdentity:
    """Looks at the files of one camera; none is read.

    Args:
        camera: The dataset's key.
        resize: How the run scales videos.
        info: The dataset.
        episodes: Where each episode lies.
        timestamps: Each frame's time in its episode; None where no camera is a video.

    Raises:
        DataError: if a file is missing.
    """
    is_video = camera in episodes.videos
    if is_video:
        segments = episodes.videos[camera]
        assert timestamps is not None
        where = [segments.chunk, segments.file, segments.from_timestamp, episodes.length, timestamps.array]
        pairs = np.unique(np.stack([segments.chunk, segments.file], axis=1), axis=0)
        paths = [info.video_file(camera, int(chunk), int(file)) for chunk, file in pairs]
    else:
        where = [episodes.data_chunk, episodes.data_file, episodes.data_row, episodes.from_index, episodes.length]
        pairs = np.unique(np.stack([episodes.data_chunk, episodes.data_file], axis=1), axis=0)
        paths = [info.data_file(int(chunk), int(file)) for chunk, file in pairs]
    files = []
    for path in paths:
        if (found := signature_of(path)) is None:
            raise DataError(f"{path} is missing or cannot be read", "`preflight check` names all such files.")
        # Not where the dataset lies: a copy that keeps the times (cp -a, rsync -a) is the same one.
        files.append(f"{path.relative_to(info.root)} {found.size} {found.mtime_ns}")
    in_scaler = is_video and resize == "swscale"
    return FrameIdentity(
        camera=camera,
        frames=info.total_frames,
        # Pictures in parquet files are scaled by PIL in any case.
        resize=resize if is_video else "pil",
        made_with=_made_with(decoded=is_video, in_scaler=in_scaler),
        files=_hash(line.encode() for line in files),
        places=_hash(f"{array.dtype} {array.shape} ".encode() + array.tobytes() for array in where),
    )


def _made_with(*, decoded: bool, in_scaler: bool) -> dict[str, str]:
    made = {"machine": platform.machine()}  # the scaler's code is another one on each architecture
    if decoded:
        libraries = av.library_versions
        made["PyAV"] = av.__version__
        made |= {
            name: ".".join(map(str, libraries[name]))
            for name in ("libavcodec", "libavutil", "libswscale")
            if name in libraries
        }
    if not in_scaler:
        made["Pillow"] = PIL.__version__
    return made


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]
