"""The texts of a dataset's tasks, from meta/tasks.jsonl (formats v2.x) or meta/tasks.parquet (v3.0)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from preflight.data.files import read_json_lines, shown
from preflight.data.metadata import DatasetInfo
from preflight.data.parquet import open_parquet, read_parquet, schema_of, whole_numbers
from preflight.errors import DataError

# Ten times what the largest public dataset has; the texts by index fill a list of this length.
_MAX_TASKS = 1_000_000


def tasks_file(info: DatasetInfo) -> Path:
    """The file that holds a dataset's tasks."""
    return info.root / "meta" / ("tasks.jsonl" if info.one_file_per_episode else "tasks.parquet")


def list_tasks(info: DatasetInfo) -> list[tuple[int, str]]:
    """Reads the tasks as they are listed, be an index or a text listed twice.

    Args:
        info: The dataset.

    Returns:
        task_index and text of each, in the file's order; "" for a text that is missing.

    Raises:
        DataError: if the file is missing or damaged, or an index is not a whole number from 0 to 999999.
    """
    path = tasks_file(info)
    pairs = list(_from_json(path) if info.one_file_per_episode else _from_parquet(path))
    for index, text in pairs:
        if not 0 <= index < _MAX_TASKS:
            raise DataError(
                f"{path}: task_index must be between 0 and {_MAX_TASKS - 1}, got {index} for the task {shown(text)}"
            )
    return pairs


def texts_by_index(pairs: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    """Arranges tasks by their index.

    Args:
        pairs: task_index and text of each; of two with one index the later counts, as for LeRobot's reader.

    Returns:
        The texts, by task_index; "" where there is no such task.
    """
    by_index = dict(pairs)
    return tuple(by_index.get(index, "") for index in range(max(by_index, default=-1) + 1))


def _from_json(path: Path) -> Iterable[tuple[int, str]]:
    for row in read_json_lines(path, max_lines=_MAX_TASKS):
        if not isinstance(row, dict) or not isinstance(row.get("task"), str) or type(row.get("task_index")) is not int:
            raise DataError(f"{path}: expected an object with task_index and task a line, got {shown(row)}")
        yield row["task_index"], row["task"]


def _from_parquet(path: Path) -> Iterable[tuple[int, str]]:
    with open_parquet(path) as file:
        schema = schema_of(file, path)
    # The text is the table's pandas index: its column's name depends on LeRobot's version.
    texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if not texts:
        raise DataError(f"{path}: no column with the tasks' text")
    table = read_parquet(path, ["task_index", texts[0]], max_rows=_MAX_TASKS)
    indices = whole_numbers(table, "task_index", path).tolist()
    return zip(indices, (text or "" for text in table.column(texts[0]).to_pylist()), strict=True)
