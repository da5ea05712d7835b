"""A pass over the pictures that lie in parquet files: each decodes, and has the size and channels of its feature."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from preflight.data.episodes import Episodes
from preflight.data.images import Picture, decode_picture, iterate_values, read_picture
from preflight.data.metadata import DatasetInfo
from preflight.data.video_files import height_and_width
from preflight.data.video_pass import by_turns, spread
from preflight.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeenPictures:
    """What was seen of the pictures of some cameras."""

    cameras: tuple[str, ...]
    pictures: int  # that were decoded
    episodes: int  # that were looked at, of each camera
    of_episodes: int
    faults: tuple[str, ...]  # at most one an episode and camera; names file, episode and frame
    remarks: tuple[str, ...]  # odd, and no harm

    def covered(self) -> str:
        """What was looked at, in words."""
        return (
            f"{self.pictures:,} pictures in the parquet files decoded, of {self.episodes:,} of {self.of_episodes:,} "
            f"episodes of {', '.join(self.cameras)}"
        )


def look_at_pictures(
    info: DatasetInfo,
    episodes: Episodes,
    cameras: Sequence[str],
    *,
    threads: int,
    limit_s: float,
    every_frame: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SeenPictures:
    """Looks at the pictures of episodes that are spread over the dataset.

    Args:
        info: The dataset.
        episodes: Its episodes.
        cameras: Some of its image keys.
        threads: How many episodes are looked at at once.
        limit_s: After so many seconds no further episode is begun, except the first and the last of each camera.
        every_frame: Decode all pictures of an episode, not its first, middle and last one alone.
        progress: Told how many episodes are done, and of how many.

    Returns:
        What was seen.
    """
    deadline = time.monotonic() + limit_s
    pieces: list[tuple[str, int]] = by_turns([[(camera, at) for at in spread(len(episodes))] for camera in cameras])
    always = 2 * len(cameras)

    def look(number: int) -> tuple[int, str, str] | None:
        if number >= always and time.monotonic() > deadline:
            return None
        return _look_at_episode(info, episodes, *pieces[number], every_frame)

    found = []
    with ThreadPoolExecutor(threads, thread_name_prefix="pictures") as pool:
        for number, seen in enumerate(pool.map(look, range(len(pieces)))):
            progress(number + 1, len(pieces))
            if seen is not None:
                found.append(seen)
    return SeenPictures(
        cameras=tuple(cameras),
        pictures=sum(count for count, _, _ in found),
        episodes=len(found),
        of_episodes=len(pieces),
        faults=tuple(fault for _, fault, _ in found if fault),
        remarks=tuple(remark for _, _, remark in found if remark),
    )


def _look_at_episode(
    info: DatasetInfo, episodes: Episodes, camera: str, at: int, every_frame: bool
) -> tuple[int, str, str]:
    """How many pictures were decoded, what is wrong with the first wrong one, and what is odd with the first."""
    path = info.data_file(int(episodes.data_chunk[at]), int(episodes.data_file[at]))
    first, length = int(episodes.data_row[at]), int(episodes.length[at])
    feature = info.features[camera]
    size, shape = height_and_width(feature), feature.shape
    channels = math.prod(shape) // math.prod(size) if size and len(shape) == 3 and math.prod(size) else None
    count, remark, frame = 0, "", 0
    try:
        for row, picture in _pictures(path, camera, first, length, every_frame):
            frame = row - first
            named = f"{path}, episode {int(episodes.index[at])}, frame {frame}"
            has = picture.pixels.shape[:2]
            if size and has != size:
                said = (
                    f"{named}: the picture in {camera!r} has {has[0]}x{has[1]} pixels, info.json gives "
                    f"{size[0]}x{size[1]} (height x width)"
                )
                # Turned round, it is the metadata that has the order wrong.
                if has != size[::-1]:
                    return count, said, remark
                remark = remark or said
            if channels and picture.channels != channels:
                said = f"the picture in {camera!r} has {picture.channels} channel(s), info.json gives {channels}"
                return count, f"{named}: {said}", remark
            count += 1
    except _AtRowError as error:
        frame = error.row - first
        reason = error.message.removeprefix(f"{path}, row {error.row}: ")
        return count, f"{path}, episode {int(episodes.index[at])}, frame {frame}: {reason}", remark
    return count, "", remark


class _AtRowError(DataError):
    def __init__(self, row: int, error: DataError) -> None:
        super().__init__(error.message, error.hint)
        self.row = row


def _pictures(path: Path, camera: str, first: int, length: int, every: bool) -> Iterator[tuple[int, Picture]]:
    """Pictures of an episode with their rows; _AtRowError where one cannot be had."""
    row = first
    try:
        if every:
            for row, value in iterate_values(path, camera, range(first, first + length)):
                yield row, decode_picture(value, path, camera, row)
        else:
            for row in sorted({first, first + length // 2, first + length - 1}):
                yield row, read_picture(path, camera, row)
    except DataError as error:
        raise _AtRowError(row, error) from error
