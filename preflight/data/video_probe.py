"""What a video file really holds, against the episodes that are said to lie in it: header, packets, some frames."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Literal

import av
import numpy as np

from preflight.data.mp4 import torn
from preflight.data.video import Video
from preflight.data.video_decode import decode_whole
from preflight.data.video_files import VideoFile, frames_needed, impossible_layout, missing_frames
from preflight.errors import DataError

# Packets looked at for the key-frame distance where not all are: twice what x264 puts between two (its keyint, 250).
SOME_PACKETS = 600

# An average rate that differs by more is named. A frame more or less in an episode of 10 s at 30 fps makes 0.3%.
_RATE_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """What was seen in one video."""

    faults: tuple[str, ...] = ()  # sentences that name the file: training on it would break or go wrong
    remarks: tuple[str, ...] = ()  # sentences that name the file: odd, and no harm
    opened: bool = False
    codec: str = ""
    size: tuple[int, int] = (0, 0)  # height and width in pixels
    frames: int = 0  # as the container says, or its packets counted
    key_frame_distance: int = 0  # the most frames from one key frame to the next, among the packets looked at
    wrong_size: bool = False  # the first fault is that its size is not that of info.json
    frames_decoded: int = 0  # in sequence, where every frame was asked for
    decoded: int = 0  # episodes of which first, middle and last frame were decoded


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeCost:
    """Wall time of a frame on one thread, as a loader's worker decodes it, with its conversion to RGB."""

    random_ms: float  # sought anywhere in the video
    sequential_ms: float  # one after the other


def probe(
    video: VideoFile,
    decode: Sequence[int],
    *,
    packets: Literal["none", "some", "all"] = "some",
    every_frame: bool = False,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[int], None] = lambda frames: None,
) -> Probe:
    """Looks at one video; a file that cannot be read is a fault in the answer, no exception.

    Args:
        video: Which one.
        decode: Places of episodes in it: of these the first, the middle and the last frame are decoded.
        packets: "all" compares the time of every frame with the grid of its episode, without decoding it; "some" does
            so for short videos, and where the number of frames or the rate is not that of the episodes; "none" decodes
            alone.
        every_frame: Decode all frames in sequence as well.
        stop: Asked before each episode but the first, and every few frames: yes leaves the others out.
        told: Told how many further frames were decoded in sequence.

    Returns:
        What was seen.
    """
    seen = Probe()
    try:
        with (
            contextlib.closing(Video(video.path)) as opened,
            av.open(str(video.path), metadata_errors="replace") as container,
        ):
            in_place = True
            if packets != "none":
                seen, in_place = _packets(container, video, every_packet=packets == "all")
            # Where frames are known to be missing, decoding would say so again.
            if in_place and every_frame:
                whole = decode_whole(opened, video, stop=stop, told=told)
                in_place = not whole.faults
                seen = dataclasses.replace(
                    seen,
                    faults=(*seen.faults, *(fault + _torn_mp4(video) for fault in whole.faults)),
                    remarks=(*seen.remarks, *whole.remarks),
                    frames_decoded=whole.frames,
                )
            if in_place:
                wrong, decoded = _decode(opened, video, decode, stop)
                seen = dataclasses.replace(seen, faults=(*seen.faults, *wrong), decoded=decoded)
    except DataError as error:
        reason = torn(video.path) if video.path.is_file() and video.path.stat().st_size else None
        return dataclasses.replace(seen, faults=(f"{error.message}; {reason}" if reason else error.message,))
    except (av.FFmpegError, OSError) as error:
        fault = f"{video.path} cannot be read to its end: {error.strerror}{_torn_mp4(video)}"
        return dataclasses.replace(seen, faults=(fault,), opened=True)
    return seen


def decode_cost(video: VideoFile, *, count: int = 16, limit_s: float = 1.5) -> DecodeCost:
    """Measures what a frame costs, sought at random and in sequence.

    Args:
        video: A sound one.
        count: How many frames are decoded either way; the same of a video each time.
        limit_s: After so many seconds no further one is begun.

    Returns:
        Means, in milliseconds.

    Raises:
        DataError: if one of these frames is not there or cannot be decoded.
    """
    draw = random.Random(0)
    places = [draw.randrange(len(video.length)) for _ in range(count)]
    times = [video.time_s(at, draw.randrange(int(video.length[at]))) for at in places]
    with contextlib.closing(Video(video.path)) as opened:
        opened.frame_at(video.time_s(0, 0))  # sets the decoder up
        random_ms = _mean_ms(map(opened.frame_at, times), limit_s)
    try:
        with av.open(str(video.path), metadata_errors="replace") as container:
            container.streams.video[0].codec_context.thread_count = 1
            pictures = (frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), count + 1))
            next(pictures, None)
            sequential_ms = _mean_ms(pictures, limit_s)
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{video.path}: its first {count} frames cannot be decoded: {error.strerror}") from error
    return DecodeCost(random_ms=random_ms, sequential_ms=sequential_ms)


def _mean_ms(work: Iterable[object], limit_s: float) -> float:
    began, done = time.perf_counter(), 0
    for _ in work:
        done += 1
        if time.perf_counter() - began > limit_s:
            break
    return 1000 * (time.perf_counter() - began) / max(1, done)


def _packets(container: Any, video: VideoFile, *, every_packet: bool) -> tuple[Probe, bool]:
    """Looks at the header and at packets; and says whether it is worth decoding what the episodes need."""
    stream = container.streams.video[0]
    codec, size = stream.codec_context.codec, (stream.codec_context.height, stream.codec_context.width)
    faults: list[str] = []
    remarks: list[str] = []
    if video.size and size != video.size:
        said = (
            f"{video.path} shows {_by(size)} pixels, info.json gives {video.camera} {_by(video.size)} (height x width)"
        )
        # Turned round, it is the metadata that has the order wrong.
        (remarks if size == video.size[::-1] else faults).append(said)
    wrong_size = bool(faults)
    if layout := impossible_layout(video):
        return Probe(
            faults=(*faults, layout), remarks=tuple(remarks), opened=True, size=size, wrong_size=wrong_size
        ), False

    need = frames_needed(video)
    rate = float(stream.average_rate or video.fps)
    plays = ""
    if abs(rate / video.fps - 1) > _RATE_TOLERANCE:
        plays = f"it plays at {rate:.4g} fps, info.json says {video.fps:g}"
    # The last packet is PyAV's own and empty; what an edit list cuts off is never shown.
    packets = ((p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard)
    seen = list(islice(packets, SOME_PACKETS))
    whole = every_packet or len(seen) < SOME_PACKETS or stream.frames != need or bool(plays)
    if whole:
        seen += packets
    frames = len(seen) if whole else stream.frames
    missing = None
    if whole and all(pts is not None for pts, _ in seen):
        times_s = np.sort(np.array([pts for pts, _ in seen], dtype=np.int64)) * float(stream.time_base)
        missing = missing_frames(video, times_s)
        if repeated := len(times_s) - len(np.unique(times_s)):
            remarks.append(f"{video.path} has {repeated} frame(s) at the time of another one")

    counts = f"{frames} frames, {_episodes(video)} {need}"
    if missing:
        parts = [missing, f"it has {counts}" if frames != need else "", plays]
        faults.append("; ".join(filter(None, parts)) + _torn_mp4(video))
    elif frames < need:
        faults.append(f"{video.path} has {counts}{_torn_mp4(video)}")
    else:
        if frames > need:
            remarks.append(f"{video.path} has {counts}: the rest is never seen")
        if plays:
            remarks.append(f"{video.path}: {plays}, but each frame is where it is looked for")
    keys = np.flatnonzero([is_key for _, is_key in seen])
    return Probe(
        faults=tuple(faults),
        remarks=tuple(remarks),
        opened=True,
        codec=getattr(codec, "canonical_name", codec.name),
        size=size,
        wrong_size=wrong_size,
        frames=frames,
        key_frame_distance=int(np.diff(keys, append=len(seen)).max(initial=0)) if len(keys) else len(seen),
    ), not (missing or frames < need)


def _decode(
    opened: Video, video: VideoFile, decode: Sequence[int], stop: Callable[[], bool]
) -> tuple[tuple[str, ...], int]:
    """Decodes first, middle and last frame of episodes: what is wrong, and how many episodes are sound."""
    first, wrong, done = "", 0, 0
    for at in decode:
        if done and stop():
            break
        done += 1
        length = int(video.length[at])
        for frame in sorted({0, length // 2, length - 1}):
            try:
                opened.frame_at(video.time_s(at, frame))
            except DataError as error:
                reason = error.message.removeprefix(str(video.path)).lstrip(": ")
                first = first or f"{video.named(at, frame)}: {reason}"
                wrong += 1
                break
    if not wrong:
        return (), done
    more = f" (so with {wrong} of {done} episodes)" if wrong > 1 else ""
    return (first + more + _torn_mp4(video),), done - wrong


def _torn_mp4(video: VideoFile) -> str:
    """What is missing at the end of a file that could be opened, whatever its format."""
    reason = torn(video.path)
    return f"; {reason}" if reason and "no mp4" not in reason else ""


def _episodes(video: VideoFile) -> str:
    several = len(video.episode) > 1
    return f"its {len(video.episode)} episodes have" if several else f"episode {video.episode[0]} has"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
