"""Where each episode's frames lie, from the metadata of formats v2.0, v2.1 and v3.0."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from preflight.data.files import damage, read_json_lines
from preflight.data.metadata import DatasetInfo
from preflight.data.parquet import as_numpy, open_parquet, read_parquet
from preflight.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoSegments:
    """Where each episode lies in one camera's videos."""

    chunk: Int64[np.ndarray, " e"]  # index of the video's folder
    file: Int64[np.ndarray, " e"]  # index of the video; in format v2.x the episode's index
    from_timestamp: Float64[np.ndarray, " e"]  # second in the video at which the episode begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episodes:
    """All episodes, sorted by index, as arrays: ten thousand of them cost a worker kilobytes, not objects."""

    index: Int64[np.ndarray, " e"]  # the dataset's own number of the episode
    length: Int64[np.ndarray, " e"]  # frames
    from_index: Int64[np.ndarray, " e"]  # its first frame, counted over the whole dataset
    to_index: Int64[np.ndarray, " e"]  # one after its last frame
    data_chunk: Int64[np.ndarray, " e"]  # index of its parquet file's folder
    data_file: Int64[np.ndarray, " e"]  # index of its parquet file; in format v2.x the episode's index
    data_row: Int64[np.ndarray, " e"]  # its first row in that file
    videos: dict[str, VideoSegments]  # by camera
    tasks: tuple[str, ...]  # by task_index; "" where the dataset has no such task

    def __len__(self) -> int:
        return len(self.length)

    def of_frame(self, frame: int) -> int:
        """Finds the episode of a frame.

        Args:
            frame: Index over the whole dataset.

        Returns:
            The episode's position in these arrays.
        """
        return int(np.searchsorted(self.to_index, frame, side="right"))


def read_episodes(info: DatasetInfo) -> Episodes:
    """Reads where each episode lies.

    Args:
        info: The dataset.

    Returns:
        Its episodes.

    Raises:
        DataError: if the metadata is missing or damaged, or contradicts info.json or itself.
    """
    return _read_v2(info) if info.one_file_per_episode else _read_v3(info)


def missing_files(info: DatasetInfo, episodes: Episodes, cameras: Sequence[str]) -> list[Path]:
    """Lists the files that a run needs and cannot use.

    Args:
        info: The dataset.
        episodes: Its episodes.
        cameras: The cameras that the run uses.

    Returns:
        The expected parquet files and videos that are absent, empty, unreadable or Git LFS pointers.
    """
    expected = [info.data_file(*pair) for pair in _pairs(episodes.data_chunk, episodes.data_file)]
    for key in cameras:
        if key in episodes.videos:
            segments = episodes.videos[key]
            expected += [info.video_file(key, *pair) for pair in _pairs(segments.chunk, segments.file)]
    return [path for path in expected if damage(path) is not None]


def _pairs(chunk: np.ndarray, file: np.ndarray) -> Iterable[tuple[int, int]]:
    return sorted(set(zip(chunk.tolist(), file.tolist(), strict=True)))


def _read_v2(info: DatasetInfo) -> Episodes:
    path = info.root / "meta" / "episodes.jsonl"
    index, length = _int_fields(path, ("episode_index", "length"), info).T
    chunk = index // info.chunks_size
    order = np.argsort(index, kind="stable")
    index, length, chunk = index[order], length[order], chunk[order]
    to_index = np.cumsum(length)
    tasks_path = info.root / "meta" / "tasks.jsonl"
    rows = read_json_lines(tasks_path)
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("task"), str) or type(row.get("task_index")) is not int:
            raise DataError(f"{tasks_path}: expected an object with task_index and task a line, got {row!r}")
    return _checked(
        info,
        path,
        Episodes(
            index=index,
            length=length,
            from_index=to_index - length,
            to_index=to_index,
            data_chunk=chunk,
            data_file=index,
            data_row=np.zeros_like(index),
            videos={
                key: VideoSegments(chunk=chunk, file=index, from_timestamp=np.zeros(len(index)))
                for key in info.video_keys
            },
            tasks=_by_index([row["task_index"] for row in rows], [row["task"] for row in rows], tasks_path),
        ),
    )


def _int_fields(path: Path, names: tuple[str, ...], info: DatasetInfo) -> np.ndarray:
    rows = read_json_lines(path)
    values = []
    for row in rows:
        if not isinstance(row, dict) or any(type(row.get(name)) is not int for name in names):
            raise DataError(f"{path}: expected an object with the integers {' and '.join(names)} a line, got {row!r}")
        values.append([row[name] for name in names])
    if len(values) != info.total_episodes:
        raise DataError(f"{path} lists {len(values)} episodes, but info.json says {info.total_episodes}")
    return np.array(values, dtype=np.int64)


def _read_v3(info: DatasetInfo) -> Episodes:
    folder = info.root / "meta" / "episodes"
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise DataError(f"{folder} has no parquet file", "The download is incomplete: fetch the dataset again.")
    columns = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    columns += ["data/chunk_index", "data/file_index"]
    for key in info.video_keys:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    tables = [read_parquet(path, columns) for path in paths]
    raw = {
        column: np.concatenate([_numbers(t, column, p) for t, p in zip(tables, paths, strict=True)])
        for column in columns
    }
    if len(raw["episode_index"]) != info.total_episodes:
        found = len(raw["episode_index"])
        raise DataError(f"{folder} lists {found} episodes, but info.json says {info.total_episodes}")
    order = np.argsort(raw["episode_index"], kind="stable")
    raw = {column: values[order] for column, values in raw.items()}

    def ints(column: str) -> np.ndarray:
        return raw[column].astype(np.int64)

    length, chunk, file = ints("length"), ints("data/chunk_index"), ints("data/file_index")
    return _checked(
        info,
        folder,
        Episodes(
            index=ints("episode_index"),
            length=length,
            from_index=ints("dataset_from_index"),
            to_index=ints("dataset_to_index"),
            data_chunk=chunk,
            data_file=file,
            data_row=_rows_in_file(length, chunk, file),
            videos={
                key: VideoSegments(
                    chunk=ints(f"videos/{key}/chunk_index"),
                    file=ints(f"videos/{key}/file_index"),
                    from_timestamp=raw[f"videos/{key}/from_timestamp"].astype(np.float64),
                )
                for key in info.video_keys
            },
            tasks=_tasks_v3(info.root / "meta" / "tasks.parquet"),
        ),
    )


def _rows_in_file(length: np.ndarray, chunk: np.ndarray, file: np.ndarray) -> np.ndarray:
    """First row of each episode in its own file: the frames of the earlier episodes that share the file."""
    # Stable, so that the episodes of a file stay in their order.
    order = np.lexsort((file, chunk))
    before = np.cumsum(length[order]) - length[order]
    new_file = np.ones(len(order), dtype=bool)
    new_file[1:] = (np.diff(chunk[order]) != 0) | (np.diff(file[order]) != 0)
    start_of_file = before[np.maximum.accumulate(np.where(new_file, np.arange(len(order)), 0))]
    rows = np.empty_like(length)
    rows[order] = before - start_of_file
    return rows


def _numbers(table: pa.Table, column: str, path: Path) -> np.ndarray:
    values = table.column(column)
    if values.null_count or not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise DataError(f"{path}: column {column!r} must hold a number for each episode, got {values.type}")
    return as_numpy(values.combine_chunks() if values.num_chunks != 1 else values.chunk(0))


def _tasks_v3(path: Path) -> tuple[str, ...]:
    with open_parquet(path) as file:
        names = file.schema_arrow.names
    table = read_parquet(path, dict.fromkeys(["task_index", *names]))
    # The text is the table's pandas index: its column's name depends on LeRobot's version.
    texts = [c for c in table.columns if pa.types.is_string(c.type) or pa.types.is_large_string(c.type)]
    if not texts:
        raise DataError(f"{path}: no column with the tasks' text")
    return _by_index(_numbers(table, "task_index", path).tolist(), texts[0].to_pylist(), path)


def _by_index(indices: list[Any], texts: list[Any], path: Path) -> tuple[str, ...]:
    if any(not 0 <= index < 1_000_000 for index in indices):
        raise DataError(f"{path}: task_index must be between 0 and 999999, got {min(indices)} to {max(indices)}")
    by_index = dict(zip(indices, texts, strict=True))
    return tuple(by_index.get(index) or "" for index in range(max(indices, default=-1) + 1))


def _checked(info: DatasetInfo, source: Path, episodes: Episodes) -> Episodes:
    """Refuses metadata that would silently give frames of another episode."""
    for position, number in enumerate(episodes.index.tolist()):
        start, end, length = (int(a[position]) for a in (episodes.from_index, episodes.to_index, episodes.length))
        expected = int(episodes.to_index[position - 1]) if position else 0
        if position and number == episodes.index[position - 1]:
            raise DataError(f"{source} lists episode {number} twice")
        if length <= 0 or end - start != length or start != expected:
            raise DataError(
                f"{source}: episode {number} has length {length} and frames {start} to {end}, "
                f"but the episode before it ends at frame {expected}",
                "The metadata is inconsistent: convert or fetch the dataset again.",
            )
    if int(episodes.to_index[-1]) != info.total_frames:
        total = int(episodes.to_index[-1])
        raise DataError(
            f"{source}: the episodes' lengths sum to {total}, but info.json says {info.total_frames} frames"
        )
    return episodes
