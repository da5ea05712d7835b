"""What is odd in the recorded columns of state and actions: one pass over all frames, file by file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from preflight.data.columns import read_columns
from preflight.data.episodes import Episodes
from preflight.data.metadata import DatasetInfo
from preflight.data.raw_values import split_by_files
from preflight.data.steps import Jump, StepSample

# LeRobot's own columns say which frame a row is; nobody trains on them.
_OWN = {"timestamp", "frame_index", "episode_index", "index", "task_index", "subtask_index"}
_NUMBERS = ("float", "int", "uint", "bool")  # how their dtypes begin
_BLOCK = 1 << 15  # frames that are looked at together
# A shorter episode may well be at rest: a second at the usual rates.
_LONG = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnScan:
    """One column of all frames."""

    key: str
    labels: tuple[str, ...]  # of its dimensions, as in "action[6] (kLeftWristYaw)"
    names: tuple[str, ...]  # of its dimensions as the dataset gives them, "" where it does not
    low: Float32[np.ndarray, " d"]  # of the finite values
    high: Float32[np.ndarray, " d"]
    not_finite: Mapping[int, tuple[int, int]]  # by dimension: how many frames, and the first
    jumps: tuple[Jump, ...]  # the largest first
    episode_low: Float32[np.ndarray, "e d"]
    episode_high: Float32[np.ndarray, "e d"]

    @property
    def constant(self) -> Bool[np.ndarray, " d"]:
        """The dimensions whose values are all one and the same."""
        return np.asarray(self.low == self.high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """All columns that were looked at."""

    columns: Mapping[str, ColumnScan]
    lengths: Int64[np.ndarray, " e"]  # of the episodes, frames
    equal_episodes: Mapping[tuple[str, str], Bool[np.ndarray, " e"]]  # by pair of columns: the same in all its frames

    @property
    def equal(self) -> tuple[tuple[str, str], ...]:
        """Pairs of columns that are the same in every frame."""
        return tuple(sorted(pair for pair, same in self.equal_episodes.items() if same.all()))

    def frozen(self, key: str) -> Int64[np.ndarray, " f"]:
        """Positions of the episodes of at least 30 frames in which no dimension moves, though some do in others.

        Args:
            key: Of the column.
        """
        column = self.columns[key]
        still = (column.episode_low == column.episode_high).all(axis=1)
        return np.flatnonzero(still & (self.lengths >= _LONG) & ~column.constant.all())

    def copied(self, pair: tuple[str, str]) -> Int64[np.ndarray, " c"]:
        """Positions of the episodes of at least 30 frames in which two columns are the same, and move.

        Args:
            pair: One of `equal_episodes`; where it is one of `equal`, there are none.
        """
        same, column = self.equal_episodes[pair], self.columns[pair[0]]
        moves = (column.episode_low < column.episode_high).any(axis=1)
        return np.flatnonzero(same & moves & (self.lengths >= _LONG) & ~same.all())


def scanned_keys(info: DatasetInfo, columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of measured values among those that a run asks for.

    Args:
        info: The dataset.
        columns: The keys that the run asks for.

    Returns:
        Those that hold numbers, whole ones too, and are not LeRobot's own.
    """
    features = info.features
    return tuple(k for k in columns if k in features and features[k].dtype.startswith(_NUMBERS) and k not in _OWN)


def scan_columns(
    info: DatasetInfo,
    episodes: Episodes,
    keys: Sequence[str],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scan:
    """Goes through columns once.

    Args:
        info: The dataset.
        episodes: Its episodes.
        keys: Of columns of numbers.
        progress: Told how many frames of how many have been seen.

    Returns:
        What was seen; its size depends on dimensions and episodes, not on frames.

    Raises:
        DataError: if a file is damaged.
    """
    seen = {key: _Column(info, key, len(episodes)) for key in keys}
    shapes = {key: math.prod(info.features[key].shape) for key in keys}
    pairs = [(a, b) for i, a in enumerate(keys) for b in keys[i + 1 :] if shapes[a] == shapes[b]]
    equal = {pair: np.zeros(len(episodes), np.bool_) for pair in pairs}
    start = position = 0
    for part, part_episodes in split_by_files(info, episodes, _BLOCK):
        values = read_columns(part, part_episodes, dict.fromkeys(keys, np.dtype(np.float32)))
        for (a, b), same in equal.items():
            frames = (values[a] == values[b]).all(axis=1)
            same[position : position + len(part_episodes)] = np.logical_and.reduceat(frames, part_episodes.from_index)
        for key in keys:
            seen[key].add(values[key], part_episodes.from_index, start, position)
        start, position = start + part.total_frames, position + len(part_episodes)
        progress(start, info.total_frames)
    columns = {key: column.done() for key, column in seen.items()}
    return Scan(columns=columns, lengths=np.asarray(episodes.length), equal_episodes=equal)


def place_of_frame(info: DatasetInfo, episodes: Episodes, frame: int) -> tuple[Path, int, int]:
    """Where a frame is recorded.

    Args:
        info: The dataset.
        episodes: Its episodes.
        frame: Counted over the dataset.

    Returns:
        The parquet file, the episode's number, and the frame counted from the episode's first.
    """
    at = episodes.of_frame(frame)
    path = info.data_file(int(episodes.data_chunk[at]), int(episodes.data_file[at]))
    return path, int(episodes.index[at]), frame - int(episodes.from_index[at])


class _Column:
    def __init__(self, info: DatasetInfo, key: str, episodes: int) -> None:
        width = math.prod(info.features[key].shape)
        names = info.features[key].names or ()
        self.key, self.width = key, width
        self.names = tuple(names) if len(names) == width else ("",) * width
        self.labels = tuple(
            f"{key}[{index}] ({name})" if name else f"{key}[{index}]" for index, name in enumerate(self.names)
        )
        self.not_finite: dict[int, tuple[int, int]] = {}
        self.episode_low = np.full((episodes, width), np.inf, np.float32)
        self.episode_high = np.full((episodes, width), -np.inf, np.float32)
        self.steps = StepSample(width, info.total_frames)

    def add(self, values: np.ndarray, first: Int64[np.ndarray, " e"], start: int, position: int) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            for dim in np.flatnonzero(~finite.all(axis=0)).tolist():
                wrong = np.flatnonzero(~finite[:, dim])
                count, earliest = self.not_finite.get(dim, (0, start + int(wrong[0])))
                self.not_finite[dim] = (count + len(wrong), earliest)
        part = slice(position, position + len(first))
        self.episode_low[part] = np.minimum.reduceat(np.where(finite, values, np.float32(np.inf)), first, axis=0)
        self.episode_high[part] = np.maximum.reduceat(np.where(finite, values, np.float32(-np.inf)), first, axis=0)
        self.steps.add(values, first, start)

    def done(self) -> ColumnScan:
        low, high = self.episode_low.min(axis=0), self.episode_high.max(axis=0)
        return ColumnScan(
            key=self.key,
            labels=self.labels,
            names=self.names,
            low=low,
            high=high,
            not_finite=self.not_finite,
            jumps=self.steps.jumps(low, high),
            episode_low=self.episode_low,
            episode_high=self.episode_high,
        )
