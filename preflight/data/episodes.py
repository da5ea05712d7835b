"""Where each episode's frames lie, from the metadata of formats v2.0, v2.1 and v3.0."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from preflight.data.files import damage, iterate_json_lines, shown
from preflight.data.metadata import MAX_EPISODES, MAX_FRAMES, DatasetInfo
from preflight.data.parquet import numbers, read_parquet, whole_numbers
from preflight.data.tasks import list_tasks, texts_by_index
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
    episodes = locate_episodes(info)
    for contradiction in contradictions(info, episodes):
        raise contradiction
    return dataclasses.replace(episodes, tasks=texts_by_index(list_tasks(info)))


def locate_episodes(info: DatasetInfo) -> Episodes:
    """Reads what the list of episodes says, be it contradictory; `read_episodes` is for whoever trusts it.

    Args:
        info: The dataset.

    Returns:
        Its episodes, without the tasks.

    Raises:
        DataError: if the list is missing or damaged.
    """
    return _locate_v2(info) if info.one_file_per_episode else _locate_v3(info)


def episode_list(info: DatasetInfo) -> Path:
    """The file, or in format v3.0 the folder, that lists a dataset's episodes."""
    return info.root / "meta" / ("episodes.jsonl" if info.one_file_per_episode else "episodes")


def listed_numbers(info: DatasetInfo) -> Int64[np.ndarray, " e"]:
    """The numbers of the episodes in the order of the files that list them; format v3.0 only."""
    parts = [
        whole_numbers(read_parquet(path, ["episode_index"], max_rows=2 * MAX_EPISODES), "episode_index", path)
        for path in sorted(episode_list(info).glob("*/*.parquet"))
    ]
    return np.concatenate(parts)


def contradictions(info: DatasetInfo, episodes: Episodes) -> Iterator[DataError]:
    """Finds what would silently give frames of another episode.

    Args:
        info: The dataset.
        episodes: As `locate_episodes` gives them.

    Yields:
        An error for each contradiction in the list of episodes, or between it and info.json.
    """
    source, count = episode_list(info), len(episodes)
    if count != info.total_episodes:
        yield DataError(f"{source} lists {count} episodes, but info.json says {info.total_episodes}")
    if not count:
        return
    start, end, length = episodes.from_index, episodes.to_index, episodes.length
    expected = np.concatenate([[0], end[:-1]])
    again = np.concatenate([[False], np.diff(episodes.index) == 0])
    for position in np.flatnonzero(again | (length <= 0) | (end - start != length) | (start != expected)).tolist():
        if again[position]:
            yield DataError(f"{source} lists episode {episodes.index[position]} twice")
            continue
        yield DataError(
            f"{source}: episode {episodes.index[position]} has length {length[position]} and frames {start[position]} "
            f"to {end[position]}, but the episode before it ends at frame {expected[position]}",
            "The metadata is inconsistent: convert or fetch the dataset again.",
        )
    if (total := int(length.sum())) != info.total_frames:
        yield DataError(
            f"{source}: the episodes' lengths sum to {total}, but info.json says {info.total_frames} frames"
        )


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


def _locate_v2(info: DatasetInfo) -> Episodes:
    path = episode_list(info)
    # Some more than expected are read, so that their number can be told.
    numbers_of = _int_fields(path, ("episode_index", "length"), max_lines=2 * info.total_episodes + 1000)
    index, length = numbers_of[np.argsort(numbers_of[:, 0], kind="stable")].T
    chunk, to_index = index // info.chunks_size, np.cumsum(length)
    return Episodes(
        index=index,
        length=length,
        from_index=to_index - length,
        to_index=to_index,
        data_chunk=chunk,
        data_file=index,
        data_row=np.zeros_like(index),
        videos={
            key: VideoSegments(chunk=chunk, file=index, from_timestamp=np.zeros(len(index))) for key in info.video_keys
        },
        tasks=(),
    )


def _int_fields(path: Path, names: tuple[str, ...], max_lines: int) -> Int64[np.ndarray, "n f"]:
    values = array.array("q")
    for row in iterate_json_lines(path, max_lines=max_lines):
        if not isinstance(row, dict) or any(type(row.get(name)) is not int for name in names):
            raise DataError(
                f"{path}: expected an object with the integers {' and '.join(names)} a line, got {shown(row)}"
            )
        if any(not abs(row[name]) <= MAX_FRAMES for name in names):
            raise DataError(f"{path}: no dataset has a number as large as in {shown(row)}")
        values.extend(row[name] for name in names)
    return np.array(values, dtype=np.int64).reshape(-1, len(names))


def _locate_v3(info: DatasetInfo) -> Episodes:
    folder = episode_list(info)
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise DataError(f"{folder} has no parquet file", "The download is incomplete: fetch the dataset again.")
    whole = ["episode_index", "length", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index"]
    timestamps = [f"videos/{key}/from_timestamp" for key in info.video_keys]
    for key in info.video_keys:
        whole += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index")]
    parts: dict[str, list[np.ndarray]] = {column: [] for column in [*whole, *timestamps]}
    left = 2 * info.total_episodes + 1000
    for path in paths:
        table = read_parquet(path, parts, max_rows=left)
        left -= table.num_rows
        for column in whole:
            parts[column].append(whole_numbers(table, column, path))
        for column in timestamps:
            parts[column].append(numbers(table, column, path).astype(np.float64))
    raw = {column: np.concatenate(values) for column, values in parts.items()}
    order = np.argsort(raw["episode_index"], kind="stable")
    raw = {column: values[order] for column, values in raw.items()}
    length, chunk, file = raw["length"], raw["data/chunk_index"], raw["data/file_index"]
    return Episodes(
        index=raw["episode_index"],
        length=length,
        from_index=raw["dataset_from_index"],
        to_index=raw["dataset_to_index"],
        data_chunk=chunk,
        data_file=file,
        data_row=_rows_in_file(length, chunk, file),
        videos={
            key: VideoSegments(
                chunk=raw[f"videos/{key}/chunk_index"],
                file=raw[f"videos/{key}/file_index"],
                from_timestamp=raw[f"videos/{key}/from_timestamp"],
            )
            for key in info.video_keys
        },
        tasks=(),
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
