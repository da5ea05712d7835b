"""Whether the frames' timestamps and numbers are what the episodes say, read from all parquet files side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64

from preflight.data.episodes import Episodes
from preflight.data.metadata import DatasetInfo
from preflight.data.parquet import as_numpy, list_lengths, read_parquet
from preflight.data.video import TOLERANCE_S
from preflight.errors import DataError

# A camera's frame is sought by the first; the others say which frame a row is.
COLUMNS = ("timestamp", "frame_index", "index", "episode_index")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with one column of one file, or with the file."""

    column: str | None  # one of COLUMNS; None: the file cannot be looked at
    message: str  # names the file, and the first wrong episode and frame
    episodes: int  # with a wrong frame
    frames: int  # that are wrong


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileReport:
    """What was seen in one parquet file."""

    faults: tuple[Fault, ...] = ()
    frames: int = 0  # that were looked at
    furthest_s: float = 0.0  # of all finite timestamps, the largest distance from the grid
    # Frames that are beyond the tolerance only because their dtype holds no nearer number: float32 from 2048 s on.
    rounded: int = 0
    # Neighbours whose distance is beyond it for the same reason, as LeRobot before 0.4 looks at them: from 1024 s on.
    rounded_steps: int = 0


def check_timestamps(
    info: DatasetInfo,
    episodes: Episodes,
    *,
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[FileReport]:
    """Compares four columns of every parquet file with the episode list; a thread holds one file's at a time.

    Timestamps must be i / fps within LeRobot's tolerance of 1e-4 s, since videos are sought by them, and neighbours
    1 / fps apart within the same, as LeRobot's `check_timestamps_sync` demands up to its release 0.3. What the column's
    dtype rounds off is granted on top.

    Args:
        info: The dataset.
        episodes: Its episodes; only the files that they name are read.
        threads: How many files are read at once.
        progress: Told how many files are done, and of how many.

    Returns:
        One report a file, in the order of the episodes.
    """
    files: dict[tuple[int, int], list[int]] = {}
    for position, pair in enumerate(zip(episodes.data_chunk.tolist(), episodes.data_file.tolist(), strict=True)):
        files.setdefault(pair, []).append(position)

    def look(file: tuple[tuple[int, int], list[int]]) -> FileReport:
        pair, positions = file
        path = info.data_file(*pair)
        try:
            return _report(path, info, episodes, np.array(positions))
        except DataError as error:
            return FileReport(faults=(_unusable(error.message, len(positions), 0),))

    reports = []
    with ThreadPoolExecutor(threads, thread_name_prefix="timestamps") as pool:
        for report in pool.map(look, files.items()):
            reports.append(report)
            progress(len(reports), len(files))
    return reports


def _report(path: Path, info: DatasetInfo, episodes: Episodes, positions: Int64[np.ndarray, " e"]) -> FileReport:
    lengths = episodes.length[positions]
    total = int(lengths.sum())
    table = read_parquet(path, COLUMNS, max_rows=total)
    if table.num_rows != total:
        message = f"{path} has {table.num_rows} rows, but its {len(positions)} episode(s) have {total} frames"
        return FileReport(faults=(_unusable(message, len(positions), abs(table.num_rows - total)),))
    frame = np.arange(total) - np.repeat(episodes.data_row[positions], lengths)
    expected = {
        "frame_index": frame,
        "index": frame + np.repeat(episodes.from_index[positions], lengths),
        "episode_index": np.repeat(episodes.index[positions], lengths),
    }
    faults = []
    times, missing = _column(table, "timestamp", path)
    looked_at = _Timestamps(times, frame, info.fps)
    wrong = looked_at.wrong | missing
    if wrong.any():
        at = int(wrong.argmax())
        what = "timestamp is missing" if missing[at] else looked_at.describe(at)
        faults.append(_fault("timestamp", path, expected, wrong, what))
    for name in COLUMNS[1:]:
        values, missing = _column(table, name, path)
        if (wrong := (values != expected[name]) | missing).any():
            at = int(wrong.argmax())
            what = "is missing" if missing[at] else f"is {values[at]}, expected {expected[name][at]}"
            faults.append(_fault(name, path, expected, wrong, f"{name} {what}"))
    return FileReport(
        faults=tuple(faults),
        frames=total,
        furthest_s=looked_at.furthest_s,
        rounded=looked_at.rounded,
        rounded_steps=looked_at.rounded_steps,
    )


def _fault(column: str, path: Path, expected: dict[str, np.ndarray], wrong: Bool[np.ndarray, " n"], what: str) -> Fault:
    at = int(wrong.argmax())
    episode, frame = (int(expected[name][at]) for name in ("episode_index", "frame_index"))
    return Fault(
        column=column,
        message=f"{path}, episode {episode}, frame {frame}: {what}",
        episodes=len(np.unique(expected["episode_index"][wrong])),
        frames=int(wrong.sum()),
    )


def _unusable(message: str, episodes: int, frames: int) -> Fault:
    return Fault(column=None, message=message, episodes=episodes, frames=frames)


class _Timestamps:
    """The timestamps of a file's rows against the grid of their episodes.

    Args:
        times: In seconds.
        frame: Each row's index in its episode.
        fps: Frames a second.
    """

    wrong: Bool[np.ndarray, " n"]
    furthest_s: float
    rounded: int
    rounded_steps: int

    def __init__(self, times: np.ndarray, frame: Int64[np.ndarray, " n"], fps: float) -> None:
        self._times: Float64[np.ndarray, " n"] = times.astype(np.float64)
        self._frame = frame
        self._fps = fps
        grid = frame / fps
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and inf are found by comparing
            distance = np.abs(self._times - grid)
            # From the first row of an episode there is no step back.
            self._step = np.diff(self._times, prepend=np.nan)
            self._step[frame == 0] = 1 / fps
            step_error = np.abs(self._step - 1 / fps)
            unit = np.spacing(grid.astype(times.dtype)).astype(np.float64)
            off_grid = ~(distance <= TOLERANCE_S + unit)
            uneven = ~(step_error <= TOLERANCE_S + 2 * unit)
            # The row after a wrong one is uneven, and not wrong for it.
            after_wrong = np.concatenate([[False], off_grid[:-1]])
            self.wrong = off_grid | (uneven & ~after_wrong)
            self.furthest_s = float(distance[np.isfinite(distance)].max(initial=0.0))
            self.rounded = int(((distance > TOLERANCE_S) & ~self.wrong).sum())
            self.rounded_steps = int(((step_error > TOLERANCE_S) & ~self.wrong & ~after_wrong).sum())

    def describe(self, at: int) -> str:
        """Says what is wrong with one row's timestamp."""
        time, frame, step = self._times[at], self._frame[at], self._step[at]
        wanted = frame / self._fps
        if not np.isfinite(time):
            return f"timestamp is {time}"
        if frame == 0:
            return f"the episode's timestamps start at {time:.6f} s, expected 0 ({time - wanted:+.6f} s off)"
        if step <= 0:
            return f"timestamp is {time:.6f} s after {self._times[at - 1]:.6f} s: it does not rise"
        if abs(time - wanted) <= TOLERANCE_S:
            return f"timestamp is {step:.6f} s after the one before it, expected {1 / self._fps:.6f} s (1 / fps)"
        said = f"timestamp is {time:.6f} s, expected {wanted:.6f} s (frame_index / fps, {time - wanted:+.6f} s off)"
        usual = self._usual_step(at)
        if abs(usual * self._fps - 1) > 0.01:
            said += f"; the episode's frames are {usual:.4f} s apart, as at {1 / usual:.4g} fps, not {self._fps:g}"
        return said

    def _usual_step(self, at: int) -> float:
        first = at - int(self._frame[at])
        steps = self._step[first + 1 : first + 1 + int(np.argmax(np.append(self._frame[first + 1 :], 0) == 0))]
        steps = steps[np.isfinite(steps) & (steps > 0)]
        return float(np.median(steps)) if len(steps) else 1 / self._fps


def _column(table: pa.Table, name: str, path: Path) -> tuple[np.ndarray, Bool[np.ndarray, " n"]]:
    """A column's values and which of them are missing; a feature of shape [1] may lie in lists of one."""
    column = table.column(name)
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    is_list = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
    if is_list or pa.types.is_fixed_size_list(array.type):
        if array.null_count or (list_lengths(array) != 1).any():
            raise DataError(f"{path}: column {name!r} does not hold one number a row")
        array = array.flatten()
    time = name == "timestamp"
    if not (pa.types.is_floating(array.type) if time else pa.types.is_integer(array.type)):
        raise DataError(
            f"{path}: column {name!r} holds {array.type}, not {'seconds as floats' if time else 'integers'}"
        )
    missing = np.zeros(len(array), dtype=bool)
    if array.null_count:
        missing = as_numpy(array.is_null())
        array = array.fill_null(0)
    return as_numpy(array), missing


def wrong_columns(faults: Sequence[Fault]) -> dict[str, int]:
    """The number of wrong frames by column, for the columns that have any.

    Args:
        faults: Of any number of files.

    Returns:
        In the order of `COLUMNS`.
    """
    frames = {name: sum(fault.frames for fault in faults if fault.column == name) for name in COLUMNS}
    return {name: count for name, count in frames.items() if count}
