"""Reads columns of one parquet file, saying in words what is wrong with a file that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64

from preflight.data.files import require_file
from preflight.data.metadata import MAX_FRAMES, nearest
from preflight.errors import DataError

# What pyarrow raises for bytes that are not what they should be; memory, where a damaged size is asked for.
DAMAGED = (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens a parquet file.

    Args:
        path: The file.

    Returns:
        The open file; the caller closes it.

    Raises:
        DataError: if it is missing, empty, a Git LFS pointer or not parquet.
    """
    require_file(path)
    try:
        return pq.ParquetFile(path)
    except DAMAGED as error:
        raise unreadable(path, error) from error


def read_parquet(path: Path, columns: Iterable[str], *, max_rows: int | None = None) -> pa.Table:
    """Reads columns of a parquet file.

    Args:
        path: The file.
        columns: Names of the columns.
        max_rows: A file with more is not read: a few bytes can stand for any number of equal rows.

    Returns:
        A table with (at least) these columns.

    Raises:
        DataError: if the file is missing, damaged, lacks a column or has more rows.
    """
    with open_parquet(path) as file:
        if max_rows is not None and file.metadata.num_rows > max_rows:
            raise DataError(f"{path} has {file.metadata.num_rows} rows, expected at most {max_rows}")
        return read_table(file, path, columns)


def read_table(file: pq.ParquetFile, path: Path, columns: Iterable[str]) -> pa.Table:
    """Reads columns of an open parquet file.

    Args:
        file: The file.
        path: Its path, for messages.
        columns: Names of the columns.

    Returns:
        A table with (at least) these columns.

    Raises:
        DataError: if the file is damaged or lacks a column.
    """
    columns = list(columns)
    present = tuple(schema_of(file, path).names)
    for column in columns:
        if column not in present:
            raise DataError(f"{path}: no column {column!r}", nearest(column, present).replace("dataset", "file"))
        if present.count(column) > 1:
            raise DataError(f"{path} has more than one column {column!r}")
    try:
        table = file.read(columns=columns, use_threads=False)
        # Offsets of lists may point anywhere, and what is said to be text need not be text.
        table.validate(full=True)
    except DAMAGED as error:
        raise unreadable(path, error) from error
    return table


def schema_of(file: pq.ParquetFile, path: Path) -> pa.Schema:
    """The columns of an open parquet file.

    Args:
        file: The file.
        path: Its path, for messages.

    Raises:
        DataError: if they are damaged or of a kind unknown to pyarrow.
    """
    try:
        return file.schema_arrow
    except DAMAGED as error:
        raise unreadable(path, error) from error


def numbers(table: pa.Table, column: str, path: Path) -> Float64[np.ndarray, " n"] | Int64[np.ndarray, " n"]:
    """One column of finite numbers.

    Args:
        table: Has the column.
        column: Its name.
        path: The table's file, for messages.

    Raises:
        DataError: if a value is missing, no number, not finite, or an integer that does not fit into 64 bits.
    """
    values = table.column(column)
    if values.null_count or not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise DataError(f"{path}: column {column!r} must hold a number in each row, got {type_name(values.type)}")
    if not len(values):
        return np.empty(0, np.int64)
    try:
        wanted = pa.float64() if pa.types.is_floating(values.type) else pa.int64()
        array = as_numpy(pa.concat_arrays(values.cast(wanted).chunks))
    except DAMAGED as error:
        raise unreadable(path, error) from error
    if (wrong := np.flatnonzero(~np.isfinite(array))).size:
        raise DataError(f"{path}, row {wrong[0]}: column {column!r} is {array[wrong[0]]}")
    return array


def whole_numbers(table: pa.Table, column: str, path: Path) -> Int64[np.ndarray, " n"]:
    """One column of whole numbers, whatever type they are stored in.

    Args:
        table: Has the column.
        column: Its name.
        path: The table's file, for messages.

    Raises:
        DataError: if a value is missing, not a whole number, or beyond what sums of it would hold.
    """
    values = numbers(table, column, path)
    # abs() of the smallest int64 is negative.
    wrong = np.flatnonzero((values < -MAX_FRAMES) | (values > MAX_FRAMES) | (values != np.floor(values)))
    if wrong.size:
        raise DataError(f"{path}, row {wrong[0]}: column {column!r} is {values[wrong[0]]}, no number of this kind")
    return values.astype(np.int64)


def as_numpy(array: pa.Array) -> np.ndarray:
    """Gives the values of an array of numbers without nulls, without a copy (booleans: with one).

    pyarrow's own `to_numpy` imports pandas wherever that is installed: 0.3 s and 40 MB in each process.

    Args:
        array: Integers, floats or booleans.

    Returns:
        One axis; not to be written to.
    """
    if pa.types.is_boolean(array.type):
        return np.from_dlpack(array.cast(pa.uint8())).astype(bool)
    return np.from_dlpack(array)


def type_name(type_: pa.DataType) -> str:
    """Names a column's type in a message, where a type can be of any depth and its fields of any name."""
    return _brief(str(type_), 80)


def _brief(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def list_lengths(array: pa.Array) -> np.ndarray:
    """Gives the length of each list in an array of lists without nulls."""
    if pa.types.is_fixed_size_list(array.type):
        return np.full(len(array), array.type.list_size)
    return np.diff(as_numpy(array.offsets))


def unreadable(path: Path, error: Exception) -> DataError:
    """Says in words what pyarrow said about a file; for any of `DAMAGED`."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(
        f"{path} cannot be read as parquet ({path.stat().st_size} bytes): {_brief(reason, 300)}",
        "The file is damaged: fetch the dataset again.",
    )
