"""Whole columns of a dataset as contiguous arrays, one row a frame, in the order of the episodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from preflight.data.episodes import Episodes
from preflight.data.metadata import DatasetInfo, Feature, nearest
from preflight.data.parquet import as_numpy, list_lengths, open_parquet, read_table, type_name
from preflight.errors import DataError

Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]


def read_columns(
    info: DatasetInfo,
    episodes: Episodes,
    dtypes: Mapping[str, np.dtype],
    *,
    allocate: Allocate = np.empty,
) -> dict[str, np.ndarray]:
    """Reads columns of all the dataset's parquet files; at any time one file beside the result is in memory.

    Args:
        info: The dataset.
        episodes: Its episodes; only the files that they name are read.
        dtypes: The wanted dtype of each column, by key.
        allocate: Makes the uninitialised result from shape and dtype, e.g. in shared memory.

    Returns:
        For each key an array of shape [total_frames, d], where d is the product of the feature's shape.

    Raises:
        DataError: if a column is not in the dataset or not numeric, rows have another width than info.json says, a file
            has another number of rows than its episodes, or its rows belong to another episode.
    """
    for key in dtypes:
        require_feature(info, key)
        if info.features[key].dtype in ("video", "image", "string"):
            raise DataError(f"{key!r} is of dtype {info.features[key].dtype}, not a column of numbers")
    widths = {key: math.prod(info.features[key].shape) for key in dtypes}
    arrays = {
        key: _allocated(allocate, (info.total_frames, widths[key]), np.dtype(dtype), info)
        for key, dtype in dtypes.items()
    }
    wanted = list(dtypes)
    # Rows of another episode would train without an error, on the wrong frames.
    guard = "episode_index" if "episode_index" in info.features else None
    files: dict[tuple[int, int], list[int]] = {}
    for position, pair in enumerate(zip(episodes.data_chunk.tolist(), episodes.data_file.tolist(), strict=True)):
        files.setdefault(pair, []).append(position)
    for (chunk, file), positions in files.items():
        path = info.data_file(chunk, file)
        lengths = episodes.length[positions]
        with open_parquet(path) as opened:
            # Before anything is read: a few bytes can stand for any number of equal rows.
            if (rows := opened.metadata.num_rows) != lengths.sum():
                raise DataError(
                    f"{path} has {rows} rows, but its {len(positions)} episode(s) have {lengths.sum()} frames",
                    "Data and metadata are of different versions: fetch the dataset again.",
                )
            table = read_table(opened, path, dict.fromkeys([*wanted, *([guard] if guard else [])]))
        if guard:
            found = _values(table, guard, info.features[guard], str(path))[:, 0]
            expected = np.repeat(episodes.index[positions], lengths)
            if (wrong := np.flatnonzero(found != expected)).size:
                row = int(wrong[0])
                raise DataError(f"{path}, row {row}: episode_index is {found[row]}, expected {expected[row]}")
        for key in wanted:
            values = _values(table, key, info.features[key], str(path))
            if arrays[key].dtype.kind in "iu" and values.dtype.kind == "f" and not np.isfinite(values).all():
                raise DataError(f"{path}: column {key!r} holds NaN or infinity where whole numbers are read")
            for position in positions:
                start, row = int(episodes.from_index[position]), int(episodes.data_row[position])
                length = int(episodes.length[position])
                with np.errstate(over="ignore", invalid="ignore"):  # what no float32 holds becomes infinite
                    arrays[key][start : start + length] = values[row : row + length]
    return arrays


def _allocated(allocate: Allocate, shape: tuple[int, ...], dtype: np.dtype, info: DatasetInfo) -> np.ndarray:
    try:
        return allocate(shape, dtype)
    except (MemoryError, OverflowError, ValueError) as error:
        size = math.prod(shape) * dtype.itemsize / 2**30
        raise DataError(f"{info.root}: a column of {shape[0]:,} frames takes {size:,.0f} GiB of memory") from error


def require_feature(info: DatasetInfo, key: str) -> Feature:
    """Looks a feature up.

    Args:
        info: The dataset.
        key: The feature's key.

    Returns:
        The feature.

    Raises:
        DataError: if the dataset has no such feature; the hint lists those it has, and the nearest.
    """
    if key not in info.features:
        raise DataError(f"{key!r} is not in the dataset {info.root}", nearest(key, tuple(info.features)))
    return info.features[key]


def _values(table: pa.Table, key: str, feature: Feature, path: str) -> np.ndarray:
    """One column as [rows, d]; every level of its lists must have the feature's size."""
    column = table.column(key)
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(array, pa.ChunkedArray):  # pyarrow before 19 combines to a ChunkedArray where there are no rows
        raise DataError(f"{path} has no rows")
    if isinstance(array.type, pa.BaseExtensionType):  # matrices, in a process that has imported `datasets`
        array = array.storage
    rows, sizes = len(array), list(feature.shape)
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        _require_no_null(array, key, path)
        size = sizes.pop(0) if sizes else 1
        lengths = list_lengths(array)
        if (wrong := np.flatnonzero(lengths != size)).size:
            row = int(wrong[0]) * rows // len(array)
            raise DataError(
                f"{path}, row {row}: {key!r} has {lengths[wrong[0]]} values, "
                f"but info.json gives it the shape {list(feature.shape)}"
            )
        array = array.flatten()
    _require_no_null(array, key, path)
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)):
        raise DataError(f"{path}: column {key!r} holds {type_name(array.type)}, not numbers")
    if math.prod(sizes) != 1:
        raise DataError(f"{path}: {key!r} has one value a row, but info.json gives it the shape {list(feature.shape)}")
    return as_numpy(array).reshape(rows, -1)


def _require_no_null(array: pa.Array, key: str, path: str) -> None:
    if array.null_count:
        raise DataError(f"{path}: column {key!r} has {array.null_count} missing value(s)")
