"""One open video: its frames by time, decoded from the nearest key frame or from where the decoder already stands."""

from __future__ import annotations

import bisect
import collections
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from preflight.data.files import require_file
from preflight.errors import DataError, PreflightError

# LeRobot's tolerance_s: a frame further than this from the wanted time is another frame.
TOLERANCE_S = 1e-4

# Timestamps are float32 and so up to 3e-5 s off within the first ten minutes of a video; a frame this near is the
# wanted one, and none is decoded after it to see whether that is nearer.
_ROUNDING_S = 5e-5


class TooManyOpenFilesError(PreflightError):
    """This process may open no further file."""


class Video:
    """One open video with its decoder, single-threaded: the loader's parallelism is its processes.

    Args:
        path: The video.

    Attributes:
        path: The video.
        reformatter: For what is done with the frames; it keeps its tables as long as sizes and formats stay the same.

    Raises:
        DataError: if it cannot be opened, holds no video stream or is in a codec that PyAV cannot decode.
        TooManyOpenFilesError: if this process may open no further file.
    """

    def __init__(self, path: Path) -> None:
        require_file(path)
        self.path = path
        self.reformatter = VideoReformatter()
        try:
            # Titles and comments need not be UTF-8, and nobody reads them.
            self._container = av.open(str(path), metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise TooManyOpenFilesError(
                    f"{path} cannot be opened: too many open files", "Run: ulimit -n 65536"
                ) from error
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
        self._unit_s = float(self._stream.time_base or 0)  # time base unit, in seconds
        self._group = 0  # from a key frame to the next one, the latest that was seen, in time base units
        self._whole_group = False  # whether that stretch was seen to its end
        self._wanted: list[int] = []  # times of the pass, sorted, in time base units; none: every frame
        self._slack = 0  # how far a frame may lie from one of them, in time base units
        self._packets: Iterator[av.Packet] = iter(())
        self._ahead: collections.deque[av.Packet] = collections.deque()  # packets that were looked at and not decoded
        self._running: Iterator[av.VideoFrame] = iter(())  # what comes out next
        self._frame: av.VideoFrame | None = None  # the last that came out, during a pass
        self._damaged: set[int] = set()  # times of frames that came out and are not what was recorded
        self._at: int | None = None  # its time, in time base units; None: the next frame is sought
        self._key = 0  # time of the last key frame met
        self._landed = 0  # decoding time of the one that was sought

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
        return next(self.frames_at([timestamp_s], tolerance_s)).to_ndarray(format="rgb24")

    def frames_at(self, timestamps_s: Sequence[float], tolerance_s: float = TOLERANCE_S) -> Iterator[av.VideoFrame]:
        """Decodes the frames nearest to some times in one pass.

        Where the next time lies in the group of pictures that the decoder is in, it goes on; else it seeks.

        Args:
            timestamps_s: The wanted times in seconds, in ascending order.
            tolerance_s: How far from each the frame may lie, in seconds.

        Yields:
            The decoded frame of each time.

        Raises:
            DataError: if no frame lies that near, the video cannot be decoded there, or the frame is damaged.
        """
        if not self._unit_s:
            raise DataError(f"{self.path}: the video stream has no time base")
        self._wanted = [round(time / self._unit_s) for time in timestamps_s]
        self._slack = round(tolerance_s / self._unit_s) + 1
        try:
            for timestamp_s in timestamps_s:
                try:
                    frame, distance = self._find(timestamp_s, tolerance_s)
                except (av.FFmpegError, OSError) as error:
                    self._stop()
                    raise _undecodable(self.path, f"decoded at {timestamp_s:.4f} s", error) from error
                if frame is None:
                    raise DataError(
                        f"{self.path}: no frame at {timestamp_s:.4f} s, the video ends before it",
                        "The video is cut off or shorter than its episode: fetch it again, or drop the episode.",
                    )
                if distance > tolerance_s:
                    raise DataError(
                        f"{self.path}: no frame within {tolerance_s:g} s of {timestamp_s:.4f} s, "
                        f"the nearest is at {frame.pts * self._unit_s:.4f} s",
                        "The video is shorter than its episode or its timestamps are off: "
                        "fetch it again, or drop the episode.",
                    )
                if frame.pts in self._damaged:
                    raise DataError(
                        f"{self.path}: the frame at {timestamp_s:.4f} s is damaged, or one that it is made from: the "
                        "decoder fills it in from others",
                        "Fetch the video again, or drop the episode.",
                    )
                yield frame
        finally:
            self._frame = None  # a picture of every open video would be tens of MiB

    def close(self) -> None:
        """Closes the file and frees the decoder."""
        self._stop()
        self._container.close()

    def _find(self, timestamp_s: float, tolerance_s: float) -> tuple[av.VideoFrame | None, float]:
        """The nearest frame, and its distance in seconds."""
        start = round((timestamp_s + tolerance_s) / self._unit_s)
        # What is found on the way equals what a seek finds; where nothing is, the seek has the last word.
        if self._at is not None and self._at <= start and self._in_group(start):
            frame, distance, _ = self._search(timestamp_s)
            if distance <= tolerance_s:
                return frame, distance
        found = self._sought(start, timestamp_s, tolerance_s)
        if found[1] <= tolerance_s:
            return found
        self._wanted = []  # which frame is the nearest one shows with none passed over
        return self._sought(start, timestamp_s, tolerance_s)

    def _sought(self, start: int, timestamp_s: float, tolerance_s: float) -> tuple[av.VideoFrame | None, float]:
        earliest = min(0, self._stream.start_time or 0)
        while True:
            self._seek(start)
            frame, distance, landed_late = self._search(timestamp_s)
            if distance <= tolerance_s or not landed_late or start <= earliest:
                return frame, distance
            # Key frames are listed by decoding time, and what is shown before one can need the one before: begin
            # further ahead, at the latest at the start.
            start = max(earliest, min(start, self._landed) - 1)

    def _search(self, timestamp_s: float) -> tuple[av.VideoFrame | None, float, bool]:
        """Decodes on up to the wanted time.

        Returns:
            The nearest frame, its distance in seconds, and whether the very first frame already lay after the time.
        """
        unit = self._unit_s
        nearest, distance, landed_late = None, float("inf"), False
        frame = self._frame
        while True:
            if frame is not None:
                offset = frame.pts * unit - timestamp_s
                if abs(offset) < distance:
                    nearest, distance = frame, abs(offset)
                if offset >= -max(_ROUNDING_S, unit / 2):
                    return nearest, distance, landed_late
            first = self._at is None
            frame = next(self._running, None)
            if frame is None:
                self._stop()
                return nearest, distance, landed_late
            landed_late |= first and frame.pts * unit > timestamp_s
            self._frame, self._at = frame, frame.pts

    def _seek(self, start: int) -> None:
        """Puts the decoder before the key frame at or before a time in time base units."""
        self._container.seek(start, stream=self._stream)
        self._frame, self._at = None, None
        self._damaged.clear()
        self._packets = self._container.demux(self._stream)
        self._ahead.clear()
        self._running = self._decoded(start)

    def _in_group(self, start: int) -> bool:
        """Whether no key frame lies between where the decoder is and a later time in time base units, or none is known.

        Until a whole group was seen, packets are read on to see one; that is nothing beside decoding them.
        """
        if start < self._key + self._group:
            return True
        while not self._whole_group:
            packet = next(self._packets, None)
            if packet is None:
                return True  # the last group of all
            self._ahead.append(packet)
            if packet.is_keyframe and packet.pts is not None:
                self._group, self._whole_group = max(1, packet.pts - self._key), True
                return start < packet.pts
            if packet.pts is not None and packet.pts >= start:
                return True
        return False

    def _decoded(self, start: int) -> Iterator[av.VideoFrame]:
        """The frames from the key frame on that a seek to `start` found."""
        key, decoder, damaged = None, self._stream.codec_context, False
        while (packet := self._ahead.popleft() if self._ahead else next(self._packets, None)) is not None:
            if key is None:
                key = self._key = start if packet.pts is None else packet.pts
                self._landed = start if packet.dts is None else packet.dts
                self._group = max(self._group, start - key + 1)
            elif packet.is_keyframe and packet.pts is not None:
                # The latest stretch tells best how long the next one is.
                self._group, self._whole_group = max(1, packet.pts - key), True
                key = self._key = packet.pts
            # What no other frame needs is passed over by decoders that can tell.
            decoder.skip_frame = "DEFAULT" if self._is_wanted(packet.pts) else "NONREF"
            for frame in packet.decode():
                # What is made from a damaged frame is not marked, up to the next key frame.
                damaged = frame.is_corrupt or (damaged and not frame.key_frame)
                if frame.pts is not None:
                    if damaged:
                        self._damaged.add(frame.pts)
                    yield frame

    def _is_wanted(self, pts: int | None) -> bool:
        if pts is None or not self._wanted:
            return True
        at = bisect.bisect_left(self._wanted, pts - self._slack)
        return at < len(self._wanted) and self._wanted[at] <= pts + self._slack

    def _stop(self) -> None:
        """Forgets where the decoder stands: the next frame is sought."""
        self._running = iter(())
        self._frame = self._at = None
        self._key = self._landed = 0


def _undecodable(path: Path, what: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error)
    try:
        size = f" ({path.stat().st_size} bytes)"
    except OSError:
        size = ""  # deleted while it is open
    return DataError(f"{path}{size} cannot be {what}: {reason}", "The video is damaged or cut off: fetch it again.")
