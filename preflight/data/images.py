"""Frames of cameras whose pictures lie inside the parquet files (dtype "image"), one at a time."""

from __future__ import annotations

import collections
import io
import os
import threading
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

_open_files: collections.OrderedDict[Path, pq.ParquetFile] = collections.OrderedDict()
_lock = threading.Lock()


def read_image(path: Path, column: str, row: int) -> UInt8[np.ndarray, "h w 3"]:
    """Reads one picture out of a parquet file.

    Parquet cannot jump to a row: the rows before it in its row group are passed over. LeRobot writes 100 rows a group.

    Args:
        path: The parquet file.
        column: The camera's column, a struct with the field `bytes`.
        row: The row in the file.

    Returns:
        The picture as RGB.

    Raises:
        DataError: if the file, the row or the picture cannot be read, naming file and row.
    """
    with _lock:
        value = _value(path, column, row)
    content = value.get("bytes") if isinstance(value, dict) else None
    if not content:
        raise DataError(f"{path}, row {row}: column {column!r} holds no picture")
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}, row {row}: the picture in {column!r} cannot be decoded ({error})") from error


def _value(path: Path, column: str, row: int) -> object:
    file = _open_files.pop(path, None) or open_parquet(path)
    _open_files[path] = file
    while len(_open_files) > MAX_OPEN_FILES:
        _open_files.popitem(last=False)[1].close()
    left = row
    try:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if left >= rows:
                left -= rows
                continue
            batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False)
            for batch in batches:
                if left < batch.num_rows:
                    return batch.column(column)[left].as_py()
                left -= batch.num_rows
    except (pa.ArrowException, OSError, KeyError) as error:
        _open_files.pop(path).close()
        raise DataError(f"{path}, row {row}: column {column!r} cannot be read ({error})") from error
    raise DataError(f"{path} has {file.metadata.num_rows} rows, no row {row}")


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _open_files.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
