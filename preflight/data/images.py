"""Frames of cameras whose pictures lie inside the parquet files (dtype "image"), one at a time."""

from __future__ import annotations

import collections
import dataclasses
import io
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from preflight.data.parquet import open_parquet
from preflight.errors import DataError

# Open files a process; each costs a descriptor and its footer.
MAX_OPEN_FILES = 16

# Rows decoded at once on the way to the wanted one: bounds memory where a row group is a whole episode of pictures.
_ROWS_AT_ONCE = 16

# Pillow's modes of 16-bit and of float pictures, which a conversion to RGB saturates: "I;16", "I", "F".
_DEEP_MODES = ("I", "F")

_open_files: collections.OrderedDict[Path, pq.ParquetFile] = collections.OrderedDict()
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One decoded picture."""

    pixels: UInt8[np.ndarray, "h w 3"]  # as RGB
    channels: int  # that it is stored with: 1 where it is grey or has a palette


def read_images(path: Path, column: str, rows: Sequence[int]) -> dict[int, UInt8[np.ndarray, "h w 3"]]:
    """Reads pictures out of a parquet file in one pass.

    Parquet cannot jump to a row: the rows before it in its row group are passed over. LeRobot writes 100 rows a group.

    Args:
        path: The parquet file.
        column: The camera's column, a struct with the field `bytes`.
        rows: Rows in the file, in ascending order.

    Returns:
        The pictures as RGB, by row.

    Raises:
        DataError: if the file, a row or a picture cannot be read, naming file and row.
    """
    with _lock:
        values = _values(path, column, rows)
    return {row: decode_picture(values[row], path, column, row).pixels for row in rows}


def read_picture(path: Path, column: str, row: int) -> Picture:
    """Reads one picture with the number of channels that it is stored with; else like `read_images`."""
    with _lock:
        value = _values(path, column, [row])[row]
    return decode_picture(value, path, column, row)


def iterate_values(path: Path, column: str, rows: range) -> Iterator[tuple[int, object]]:
    """Goes through undecoded pictures one after the other, without passing over rows again for each.

    Args:
        path: The parquet file.
        column: The camera's column.
        rows: Rows in the file, in sequence.

    Yields:
        The row and what it holds, for `decode_picture`.

    Raises:
        DataError: if the file cannot be read or has not so many rows.
    """
    at = 0
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            held = file.metadata.row_group(group).num_rows
            if at + held <= rows.start or at >= rows.stop:
                at += held
                continue
            try:
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
                    values = batch.column(column)
                    for i in range(max(0, rows.start - at), min(batch.num_rows, rows.stop - at)):
                        yield at + i, values[i].as_py()
                    at += batch.num_rows
            except (pa.ArrowException, OSError, KeyError) as error:
                raise DataError(f"{path}, row {at}: column {column!r} cannot be read ({error})") from error
    if at < rows.stop:
        raise DataError(f"{path} has {at} rows, no row {rows.stop - 1}")


def decode_picture(value: object, path: Path, column: str, row: int) -> Picture:
    """Decodes what a row holds.

    Args:
        value: A dict with the encoded picture in `bytes`.
        path: The parquet file, to be named.
        column: The camera's column, to be named.
        row: The row in the file, to be named.

    Raises:
        DataError: if there is no picture, it cannot be decoded, or it has more than 8 bits a channel.
    """
    content = value.get("bytes") if isinstance(value, dict) else None
    if not content:
        raise DataError(f"{path}, row {row}: column {column!r} holds no picture")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(_DEEP_MODES):
                raise DataError(
                    f"{path}, row {row}: the picture in {column!r} has more than 8 bits a channel (mode {image.mode}), "
                    "like a depth picture, which cannot be shown to the model",
                    "Drop this camera from the config, or convert its pictures to 8-bit RGB.",
                )
            return Picture(pixels=np.asarray(image.convert("RGB")), channels=len(image.getbands()))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}, row {row}: the picture in {column!r} cannot be decoded ({error})") from error


def _values(path: Path, column: str, rows: Sequence[int]) -> dict[int, object]:
    """What the rows of a file hold; rows in ascending order."""
    file = _open_files.pop(path, None) or open_parquet(path)
    _open_files[path] = file
    while len(_open_files) > MAX_OPEN_FILES:
        _open_files.popitem(last=False)[1].close()
    values: dict[int, object] = {}
    left, first = collections.deque(rows), 0  # of the row group
    try:
        for group in range(file.num_row_groups):
            at, first = first, first + file.metadata.row_group(group).num_rows
            if not left or left[0] >= first:
                continue
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
                while left and left[0] < at + batch.num_rows:
                    row = left.popleft()
                    values[row] = batch.column(column)[row - at].as_py()
                at += batch.num_rows
                if not left or left[0] >= first:
                    break
    except (pa.ArrowException, OSError, KeyError) as error:
        _open_files.pop(path).close()
        at_fault = left[0] if left else rows[-1]
        raise DataError(f"{path}, row {at_fault}: column {column!r} cannot be read ({error})") from error
    if left:
        raise DataError(f"{path} has {file.metadata.num_rows} rows, no row {left[0]}")
    return values


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _open_files.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
