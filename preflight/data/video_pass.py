"""A pass over many videos: side by side, spread over all of them, and cut short when its time is up."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

from preflight.data.video_files import VideoFile
from preflight.data.video_probe import Probe, probe

# Episodes of one video whose frames are decoded in one go.
_EPISODES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeenVideo:
    """One video and what was seen of it."""

    video: VideoFile
    header: Probe  # what its header, its packets and its first decoded episodes say
    faults: tuple[str, ...]  # sentences that name the file
    decoded: int  # episodes of which first, middle and last frame were decoded


def look_at(
    by_camera: Sequence[Sequence[VideoFile]],
    *,
    threads: int,
    limit_s: float,
    every_frame: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
    frames_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[SeenVideo]:
    """Looks at every video once, then at the further episodes of those that hold many.

    Args:
        by_camera: The videos of each camera.
        threads: How many are looked at at once; decoding lets go of Python's lock.
        limit_s: After so many seconds nothing further is begun, except the first and the last video of each camera.
        every_frame: Compare the time of every frame and decode it.
        progress: Told how many pieces of work are done, and of how many.
        frames_progress: Told how many frames were decoded in sequence, and of how many, from any thread.

    Returns:
        The videos that were looked at, in the order given.
    """
    deadline = time.monotonic() + limit_s
    videos: list[VideoFile] = by_turns([[files[at] for at in spread(len(files))] for files in by_camera])
    pieces: list[tuple[VideoFile, list[int]]] = by_turns([_pieces(video) for video in videos])
    always = sum(min(2, len(files)) for files in by_camera)
    broken: set[int] = set()
    frames, frames_done, lock = sum(int(video.length.sum()) for video in videos), 0, threading.Lock()

    def late() -> bool:
        return time.monotonic() > deadline

    def came_out(count: int) -> None:
        nonlocal frames_done
        with lock:
            frames_done += count
            done = frames_done
        frames_progress(min(done, frames), frames)

    def look(number: int) -> Probe | None:
        video, decode = pieces[number]
        first = number < len(videos)
        if (number >= always and late()) or (not first and id(video) in broken):
            return None
        seen = probe(
            video,
            decode,
            packets=("all" if every_frame else "some") if first else "none",
            every_frame=every_frame and first,
            stop=late,
            told=came_out,
        )
        if seen.faults:
            broken.add(id(video))
        return seen

    found: dict[int, list[Probe]] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="videos") as pool:
        for number, seen in enumerate(pool.map(look, range(len(pieces)))):
            progress(number + 1, len(pieces))
            if seen is not None:
                found.setdefault(id(pieces[number][0]), []).append(seen)
    return [
        SeenVideo(
            video=video,
            header=probes[0],
            faults=next((one.faults for one in probes if one.faults), ()),
            decoded=sum(one.decoded for one in probes),
        )
        for files in by_camera
        for video in files
        if (probes := found.get(id(video)))
    ]


def spread(count: int) -> Iterator[int]:
    """Gives 0 to count - 1 in an order of which each beginning is spread evenly: both ends, the middle, the quarters.

    Args:
        count: How many; may be 0.
    """
    yield from range(min(1, count))
    if count > 1:
        yield count - 1
    gaps = collections.deque([(0, count - 1)])
    while gaps:
        low, high = gaps.popleft()
        if high - low > 1:
            middle = (low + high) // 2
            yield middle
            gaps.extend([(low, middle), (middle, high)])


def _pieces(video: VideoFile) -> list[tuple[VideoFile, list[int]]]:
    places = list(spread(len(video.length)))
    starts = range(0, len(places), _EPISODES_AT_ONCE)
    return [(video, sorted(places[start : start + _EPISODES_AT_ONCE])) for start in starts]


def by_turns(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """The first of each row, then the second of each, and so on."""
    return [entry for turn in zip_longest(*rows) for entry in turn if entry is not None]
