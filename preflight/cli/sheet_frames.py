"""Which samples a contact sheet shows: the first, middle and last frame of some episodes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from preflight.data.episodes import Episodes, read_episodes
from preflight.data.metadata import DatasetInfo, read_info
from preflight.data.parquet import read_parquet
from preflight.errors import DataError

MOST_EPISODES = 4
_MOST_UNNAMED = 4  # samples that belong to no episode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """One sample to show."""

    sample: int  # its index
    title: str
    starts_episode: bool  # whether it is the first that is shown of its episode
    task: int | None = None  # index of its task; None where it has none that is known


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picked:
    """The samples to show, and what they are of."""

    frames: tuple[Frame, ...]
    described: tuple[str, ...]  # the dataset, and what of it is shown, in words
    from_dataset: bool  # whether they are frames of a dataset that is known


def pick_frames(root: Path | None, num_samples: int) -> Picked:
    """Picks the first and the last episode and some evenly between them, and of each the first, middle and last frame.

    Args:
        root: The dataset's folder; None where samples are made up without one.
        num_samples: Of the run's dataset, at least one.

    Raises:
        DataError: The dataset's metadata is damaged.
    """
    if root is None:
        described = ("Made-up samples, without a dataset", f"Shown: some of {num_samples} samples.")
        return Picked(frames=_unnamed(num_samples, "made-up sample"), described=described, from_dataset=False)
    info = read_info(root)
    episodes = read_episodes(info)
    about = (
        f"{root}: LeRobot {info.codebase_version}, {info.fps:g} fps, "
        f"{len(episodes)} episode(s), {info.total_frames} frames"
    )
    if num_samples != info.total_frames:
        # Something of the user's own lies between: which frame a sample is of cannot be told.
        shown = f"Shown: some of {num_samples} samples, which are not one for each frame."
        return Picked(frames=_unnamed(num_samples, "sample"), described=(about, shown), from_dataset=True)
    positions = _evenly(len(episodes), MOST_EPISODES)
    frames = tuple(frame for position in positions for frame in _of_episode(info, episodes, position))
    numbers = ", ".join(str(episodes.index[position]) for position in positions)
    shown = f"Shown: the first, middle and last frame of episode(s) {numbers}."
    return Picked(frames=frames, described=(about, shown), from_dataset=True)


def _evenly(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()


def _unnamed(num_samples: int, word: str) -> tuple[Frame, ...]:
    return tuple(
        Frame(sample=index, title=f"{word} {index}", starts_episode=True)
        for index in _evenly(num_samples, _MOST_UNNAMED)
    )


def _of_episode(info: DatasetInfo, episodes: Episodes, position: int) -> list[Frame]:
    start, length = int(episodes.from_index[position]), int(episodes.length[position])
    offsets = _evenly(length, 3)
    times = _values(info, episodes, position, offsets, "timestamp")
    tasks = _values(info, episodes, position, offsets, "task_index")
    frames = []
    for offset, time_s, task in zip(offsets, times, tasks, strict=True):
        # Its own timestamp; by the frame rate where it has none.
        known = isinstance(time_s, float) and math.isfinite(time_s)
        seconds = time_s if known else offset / info.fps
        where = f"episode {episodes.index[position]}, frame {offset} of {length}, {seconds:.2f} s"
        frames.append(
            Frame(
                sample=start + offset,
                title=f"{where} (sample {start + offset})",
                starts_episode=offset == 0,
                task=task if isinstance(task, int) else None,
            )
        )
    return frames


def _values(info: DatasetInfo, episodes: Episodes, position: int, offsets: list[int], column: str) -> list[object]:
    """A column's values at some frames of an episode; None for each where they cannot be read."""
    path = info.data_file(int(episodes.data_chunk[position]), int(episodes.data_file[position]))
    try:
        values = read_parquet(path, [column]).column(column)
    except DataError:
        return [None] * len(offsets)
    rows = [int(episodes.data_row[position]) + offset for offset in offsets]
    return [values[row].as_py() if row < len(values) else None for row in rows]
