"""Frames of many videos, fetched together. Open videos are kept a process, never sent to another one."""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from preflight.data.video import TOLERANCE_S, TooManyOpenFilesError, Video
from preflight.data.video_signature import Signature, require_unchanged, signature_of
from preflight.errors import DataError
from preflight.telemetry.descriptors import descriptor_limit

# Open videos a process; each costs a file descriptor and its decoder's frames (1 MiB at 480x640).
MAX_OPEN_VIDEOS = 16

# Videos may take one in so many of the descriptors that the process is allowed, so that others find some, too.
_DESCRIPTORS_SHARE = 4

# Makes pixels of a decoded frame, with the reformatter of its video.
Convert = Callable[[av.VideoFrame, VideoReformatter], UInt8[np.ndarray, "h w 3"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WantedFrame:
    """One frame of a video."""

    path: Path  # the video
    timestamp_s: float  # the frame's time in it, in seconds
    signature: Signature | None = None  # what the video was when the dataset was opened; None: not known


@dataclasses.dataclass(frozen=True)
class _Open:
    """A video that stays open, and what its file was when it was opened."""

    video: Video
    signature: Signature | None


_open_videos: collections.OrderedDict[Path, _Open] = collections.OrderedDict()
_lock = threading.Lock()


def as_recorded(frame: av.VideoFrame, reformatter: VideoReformatter) -> UInt8[np.ndarray, "h w 3"]:
    """Converts a decoded frame to RGB at its own size; a `Convert`."""
    return frame.to_ndarray(format="rgb24")


def read_frame(path: Path, timestamp_s: float, tolerance_s: float = TOLERANCE_S) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes one frame; the video stays open in this process for the next one, as long as it is among the last used.

    Args:
        path: The video.
        timestamp_s: The frame's time in the video, in seconds.
        tolerance_s: How far from it the frame may lie, in seconds.

    Returns:
        The frame as RGB.

    Raises:
        DataError: naming file and time, if the video is missing, damaged, changed or has no frame there.
        TooManyOpenFilesError: if this process may open no further file.
    """
    return read_frames([WantedFrame(path=path, timestamp_s=timestamp_s)], tolerance_s=tolerance_s)[0]


def read_frames(
    wanted: Sequence[WantedFrame], convert: Convert = as_recorded, tolerance_s: float = TOLERANCE_S
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Decodes frames, those of one video in one pass from its beginning to its end.

    Args:
        wanted: The frames, in any order.
        convert: What is made of each.
        tolerance_s: How far from its time each may lie, in seconds.

    Returns:
        What `convert` gave, in the order asked.

    Raises:
        DataError: naming file and time, if a video is missing, damaged, changed or lacks a frame.
        TooManyOpenFilesError: if this process may open no further file.
    """
    of_video: dict[Path, list[int]] = {}
    for i, frame in enumerate(wanted):
        of_video.setdefault(frame.path, []).append(i)
    pixels: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
    with _lock:
        for path, places in of_video.items():
            places.sort(key=lambda i: wanted[i].timestamp_s)
            opened = _opened(path, wanted[places[0]].signature)
            try:
                frames = opened.video.frames_at([wanted[i].timestamp_s for i in places], tolerance_s)
                for i, frame in zip(places, frames, strict=True):
                    pixels[i] = convert(frame, opened.video.reformatter)
            except BaseException:
                _close(path)
                raise
            finally:
                # Also where decoding failed: that may be why.
                _require_as_opened(path, opened)
    return [pixels[i] for i in range(len(wanted))]


def max_open_videos() -> int:
    """How many videos this process keeps open: `MAX_OPEN_VIDEOS`, or fewer where it may open few files."""
    limit = descriptor_limit()
    return MAX_OPEN_VIDEOS if limit is None else max(1, min(MAX_OPEN_VIDEOS, limit // _DESCRIPTORS_SHARE))


def _opened(path: Path, signature: Signature | None) -> _Open:
    if path in _open_videos:
        _open_videos.move_to_end(path)
        return _open_videos[path]
    while len(_open_videos) >= max_open_videos():
        _close(next(iter(_open_videos)))
    found = signature_of(path)
    if signature is not None and found is not None:
        require_unchanged(path, signature, found)
    while True:
        try:
            _open_videos[path] = _Open(Video(path), found)
            return _open_videos[path]
        except TooManyOpenFilesError:
            # Somebody else has used up the descriptors: ours are the ones that can be given back.
            if not _open_videos:
                raise
            _close(next(iter(_open_videos)))


def _require_as_opened(path: Path, opened: _Open) -> None:
    """Raises if the open file itself was written to; one that was replaced or deleted is still read as it was."""
    now = signature_of(path)
    if now is None or opened.signature is None or now.inode != opened.signature.inode:
        return
    try:
        require_unchanged(path, opened.signature, now)
    except DataError:
        _close(path)
        raise


def _close(path: Path) -> None:
    if path in _open_videos:
        _open_videos.pop(path).video.close()


def _forget_after_fork() -> None:
    # The parent's decoders and file offsets are not ours to use.
    global _lock
    _lock = threading.Lock()
    _open_videos.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
