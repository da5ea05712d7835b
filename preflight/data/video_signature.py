"""Tells whether a video is still the one that the dataset had when the run began."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from preflight.data.episodes import VideoSegments
from preflight.data.metadata import DatasetInfo
from preflight.data.shared_array import SharedArray
from preflight.errors import DataError


class Signature(NamedTuple):
    """What a file is recognised by without reading it."""

    size: int  # bytes
    mtime_ns: int  # time of its last change
    inode: int = 0  # where its content lies; not compared: the same files copied elsewhere are the same dataset


def signature_of(path: Path) -> Signature | None:
    """Looks at a file.

    Args:
        path: The file.

    Returns:
        Its signature; None if it is not there or nobody may look.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Signature(status.st_size, status.st_mtime_ns, status.st_ino)


def require_unchanged(path: Path, before: Signature, now: Signature) -> None:
    """Raises if a file was changed.

    Args:
        path: The file, to be named.
        before: What it was.
        now: What it is.

    Raises:
        DataError: if size or time differ.
    """
    if before[:2] == now[:2]:
        return
    what = "was written to again" if before.size == now.size else f"had {before.size:,} bytes and has {now.size:,}"
    raise DataError(
        f"{path} {what} since the run opened its dataset: its frames may no longer be those of its episodes",
        "Leave a dataset alone while a run uses it, and resume from the last checkpoint.",
    )


class VideoSignatures:
    """What one camera's videos were when the dataset was opened, in shared memory.

    Args:
        info: The dataset.
        key: The camera.
        segments: Where each episode lies in its videos.
    """

    def __init__(self, info: DatasetInfo, key: str, segments: VideoSegments) -> None:
        files = np.stack([segments.chunk, segments.file], axis=1)
        different, of_episode = np.unique(files, axis=0, return_inverse=True)
        found = [signature_of(info.video_file(key, int(chunk), int(file))) for chunk, file in different]
        # What is missing may be fetched later, before it is read.
        table = np.array([(-1, -1) if one is None else one[:2] for one in found], dtype=np.int64).reshape(-1, 2)
        self._signatures = SharedArray((len(files), 2), np.dtype(np.int64))
        self._signatures.array[:] = table[of_episode.reshape(-1)]

    def of_episode(self, at: int) -> Signature | None:
        """What the video of an episode was.

        Args:
            at: The episode's position among the dataset's episodes.

        Returns:
            Its signature; None if it was not there.
        """
        size, mtime_ns = self._signatures.array[at].tolist()
        return None if size < 0 else Signature(size, mtime_ns)
