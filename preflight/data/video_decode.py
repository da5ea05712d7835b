"""Every frame of a video decoded, one after the other, against the frames that its episodes need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import av
import numpy as np
from jaxtyping import Bool, Float64

from preflight.data.video import TOLERANCE_S, Video
from preflight.data.video_files import VideoFile, nearest_times
from preflight.errors import DataError

# Frames after which the pass is told of, and asked whether it is to stop.
_FRAMES_AT_ONCE = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeVideo:
    """What was seen when a video was decoded from its beginning."""

    frames: int  # of its episodes that were decoded
    faults: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def decode_whole(
    opened: Video,
    video: VideoFile,
    *,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[int], None] = lambda frames: None,
) -> WholeVideo:
    """Decodes a video in sequence, on one thread, and looks for each frame of its episodes among what comes out.

    A decoder passes over what it cannot read, or makes the frame up from its neighbours: so frames are counted by their
    time, and a frame that the decoder marks as damaged counts as lost. Lost ones are then sought as training would.

    Args:
        opened: The same video, to seek in.
        video: One whose packets are all there.
        stop: Asked every few frames: yes leaves the rest out.
        told: Told how many further frames came out.

    Returns:
        What was seen.

    Raises:
        av.FFmpegError: if the file cannot be read to its end.
    """
    sound, marked, stopped = _decoded_times(video, stop, told)
    end_s = max(sound.max(initial=-1.0), marked.max(initial=-1.0)) if stopped else np.inf
    lost: list[tuple[int, int]] = []
    frames = 0
    for at, length in enumerate(video.length.tolist()):
        wanted = video.time_s(at, np.arange(length))
        reached = wanted <= end_s + TOLERANCE_S
        gone = reached & ~_among(wanted, sound)
        frames += int((reached & ~gone).sum())
        lost += [(at, frame) for frame in np.flatnonzero(gone).tolist()]
    if not lost:
        return WholeVideo(frames=frames)
    episodes = len({at for at, _ in lost})
    many = f" (in all {len(lost):,} damaged frame(s) of {episodes} episode(s))"
    for at, frame in lost:
        if _among(np.array([video.time_s(at, frame)]), marked).all():
            fault = f"{video.named(at, frame)}: it is damaged, the decoder fills it in from other frames{many}"
            return WholeVideo(frames=frames, faults=(fault,))
        try:
            opened.frame_at(video.time_s(at, frame))
        except DataError as error:
            reason = error.message.removeprefix(str(video.path)).lstrip(": ")
            return WholeVideo(frames=frames, faults=(f"{video.named(at, frame)}: {reason}{many}",))
    remark = f"{video.named(*lost[0])}: it is decoded where it is sought, but not in sequence ({len(lost):,} frame(s))"
    return WholeVideo(frames=frames + len(lost), remarks=(remark,))


def _decoded_times(
    video: VideoFile, stop: Callable[[], bool], told: Callable[[int], None]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " m"], bool]:
    """Times of the sound frames and of those marked as damaged, both sorted, and whether it was stopped."""
    sound: list[int] = []
    marked: list[int] = []
    stopped, since = False, 0
    with av.open(str(video.path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                pictures = packet.decode()
            except av.FFmpegError:
                continue  # the frames that do not come out are found by their times
            for picture in pictures:
                if picture.pts is not None:
                    (marked if picture.is_corrupt else sound).append(picture.pts)
            since += len(pictures)
            if since >= _FRAMES_AT_ONCE:
                told(since)
                since = 0
                if stop():
                    stopped = True
                    break
        told(since)
        unit = float(stream.time_base or 0)
    sound_s, marked_s = (np.sort(np.array(pts, dtype=np.float64)) * unit for pts in (sound, marked))
    return sound_s, marked_s, stopped


def _among(wanted: Float64[np.ndarray, " n"], times_s: Float64[np.ndarray, " m"]) -> Bool[np.ndarray, " n"]:
    if not len(times_s):
        return np.zeros(len(wanted), dtype=bool)
    return np.abs(nearest_times(wanted, times_s) - wanted) <= TOLERANCE_S
