"""Random access to a video's frames by time. Open videos are kept a process, never sent to another one."""

from __future__ import annotations

import collections
import os
import threading
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from preflight.data.files import require_file
from preflight.errors import DataError

# LeRobot's tolerance_s: a frame further than this from the wanted time is another frame.
TOLERANCE_S = 1e-4

# Open videos a process; each costs a file descriptor and its decoder's frames.
MAX_OPEN_VIDEOS = 16

_open_videos: collections.OrderedDict[Path, Video] = collections.OrderedDict()
_lock = threading.Lock()


class Video:
    """One open video with its decoder, single-threaded: the loader's parallelism is its processes.

    Args:
        path: The video.

    Raises:
        DataError: if it cannot be opened, holds no video stream or is in a codec that PyAV cannot decode.
    """

    def __init__(self, path: Path) -> None:
        require_file(path)
        self.path = path
        try:
            # Titles and comments need not be UTF-8, and nobody reads them.
            self._container = av.open(str(path), metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            raise _undecodable(path, "opened", error) from error
        if not self._container.streams.video:
            self._container.close()
            raise DataError(f"{path} has no video stream")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:  # to decode such a stream all the same crashes the process
            self._container.close()
            raise DataError(
                f"{path}: PyAV {av.__version__} has no decoder for its codec",
                f"`ffprobe {path}` names the codec: install a PyAV that has it, or encode the video again.",
            )
        self._stream.codec_context.thread_count = 1

    def frame_at(self, timestamp_s: float, tolerance_s: float = TOLERANCE_S) -> UInt8[np.ndarray, "h w 3"]:
        """Decodes the frame nearest to a time.

        Args:
            timestamp_s: The wanted time in seconds.
            tolerance_s: How far from it the frame may lie, in seconds.

        Returns:
            The frame as RGB.

        Raises:
            DataError: if no frame lies that near, or the video cannot be decoded there.
        """
        unit = self._stream.time_base
        if unit is None:
            raise DataError(f"{self.path}: the video stream has no time base")
        try:
            nearest, distance, landed_late = self._search(round((timestamp_s + tolerance_s) / unit), timestamp_s)
            if landed_late and distance > tolerance_s:
                # Some files' key frames are listed by decoding time: begin further ahead, at the latest at the start.
                nearest, distance, _ = self._search(min(0, self._stream.start_time or 0), timestamp_s)
        except (av.FFmpegError, OSError) as error:
            raise _undecodable(self.path, f"decoded at {timestamp_s:.4f} s", error) from error
        if nearest is None:
            raise DataError(
                f"{self.path}: no frame at {timestamp_s:.4f} s, the video ends before it",
                "The video is cut off or shorter than its episode: fetch it again, or drop the episode.",
            )
        if distance > tolerance_s:
            raise DataError(
                f"{self.path}: no frame within {tolerance_s:g} s of {timestamp_s:.4f} s, "
                f"the nearest is at {float(nearest.pts * unit):.4f} s",
                "The video is shorter than its episode or its timestamps are off: fetch it again, or drop the episode.",
            )
        return nearest.to_ndarray(format="rgb24")

    def _search(self, start: int, timestamp_s: float) -> tuple[av.VideoFrame | None, float, bool]:
        """Decodes from the key frame before `start` (in time base units) up to the wanted time.

        Returns:
            The nearest frame, its distance in seconds, and whether the very first frame already lay after the time.
        """
        self._container.seek(start, stream=self._stream)
        nearest, distance, first = None, float("inf"), True
        landed_late = False
        for frame in self._container.decode(self._stream):
            if frame.pts is None:
                continue
            offset = float(frame.pts * self._stream.time_base) - timestamp_s
            landed_late |= first and offset > 0
            first = False
            if abs(offset) < distance:
                nearest, distance = frame, abs(offset)
            if offset >= 0:
                break
        return nearest, distance, landed_late

    def close(self) -> None:
        """Closes the file and frees the decoder."""
        self._container.close()


def read_frame(path: Path, timestamp_s: float, tolerance_s: float = TOLERANCE_S) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes one frame; the video stays open in this process for the next one, as long as it is among the last used.

    Args:
        path: The video.
        timestamp_s: The frame's time in the video, in seconds.
        tolerance_s: How far from it the frame may lie, in seconds.

    Returns:
        The frame as RGB.

    Raises:
        DataError: naming file and time, if the video is missing, damaged or has no frame there.
    """
    with _lock:
        video = _open_videos.pop(path, None) or Video(path)
        try:
            frame = video.frame_at(timestamp_s, tolerance_s)
        except DataError:
            video.close()
            raise
        _open_videos[path] = video
        while len(_open_videos) > MAX_OPEN_VIDEOS:
            _open_videos.popitem(last=False)[1].close()
        return frame


def _undecodable(path: Path, what: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error)
    return DataError(
        f"{path} ({path.stat().st_size} bytes) cannot be {what}: {reason}",
        "The video is damaged or cut off: fetch it again.",
    )


def _forget_after_fork() -> None:
    # The parent's decoders and file offsets are not ours to use.
    global _lock
    _lock = threading.Lock()
    _open_videos.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
