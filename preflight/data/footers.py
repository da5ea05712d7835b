"""The footers of a dataset's parquet files against its episodes: rows, columns, and whose frames they say they hold."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from preflight.data.episodes import Episodes
from preflight.data.files import shown
from preflight.data.metadata import DatasetInfo, Feature
from preflight.data.parquet import DAMAGED, open_parquet, schema_of, type_name, unreadable
from preflight.data.problem import Problem, named
from preflight.errors import DataError

_VERSIONS_HINT = "Data and metadata are of different versions: fetch the dataset again."
_CAST_HINT = "Readers cast it, so nothing needs to be done; the dtype in info.json can be set to what the column holds."
_MAX_LAYOUTS = 8  # more than these are worked out again each time
# info.json's names that are not Arrow's.
_ALIASES = {"bool": pa.bool_(), "float16": pa.float16()}


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a file's columns are, and what is wrong with them: the same for nearly all files, so found out once."""

    schema: pa.Schema
    num_leaves: int
    problems: tuple[tuple[str, bool, str | None], ...]  # what follows the file's name, whether it is fatal, the hint
    widths: dict[str, tuple[int, int]]  # of the columns of lists: the leaf's index, and how many values a row must have
    ranges: dict[str, int]  # index of the leaf, for the columns of which a range is expected


def footer_problems(
    info: DatasetInfo, episodes: Episodes, path: Path, positions: list[int], layouts: list[Layout]
) -> list[Problem]:
    """Looks at one file's footer; no page of data is read.

    Args:
        info: The dataset.
        episodes: Its episodes.
        path: The file.
        positions: Those of the file's episodes, in the order of their rows.
        layouts: Of the files seen before; a new one is added. May be shared by threads.

    Returns:
        What is wrong with the file.
    """
    try:
        with open_parquet(path) as file:
            schema, footer = schema_of(file, path), file.metadata
            layout = _layout(info, schema, footer, layouts)
            problems = [Problem(f"{path}: {text}", fatal=fatal, hint=hint) for text, fatal, hint in layout.problems]
            problems += _width_problems(info, path, footer, layout)
            if _end_of_data(footer) > path.stat().st_size - footer.serialized_size:
                message = f"{path} is shorter than its footer says: a part of it is missing"
                problems.append(Problem(message, hint="The file is damaged: fetch the dataset again."))
            rows, expected = footer.num_rows, int(episodes.length[positions].sum())
            if rows != expected:
                whose = named(episodes.index[positions].tolist())
                message = f"{path} has {rows} rows, but {whose} in it must have {expected} frames"
                return [Problem(message, hint=_VERSIONS_HINT), *problems]
            return problems + list(_foreign_frames(episodes, path, positions, footer, layout))
    except DataError as error:
        return [Problem(error.message, hint=error.hint)]
    except DAMAGED as error:
        return [Problem(unreadable(path, error).message, hint="The file is damaged: fetch the dataset again.")]


def _layout(info: DatasetInfo, schema: pa.Schema, footer: Any, layouts: list[Layout]) -> Layout:
    for layout in layouts:
        if layout.num_leaves == footer.num_columns and layout.schema.equals(schema):
            return layout
    leaves: dict[str, list[int]] = {}
    for i in range(footer.num_columns):
        leaves.setdefault(_column_of(footer.schema.column(i).path), []).append(i)
    problems: list[tuple[str, bool, str | None]] = []
    widths: dict[str, tuple[int, int]] = {}
    for key, feature in info.features.items():
        if feature.dtype == "video":
            continue
        if (count := schema.names.count(key)) != 1:
            wrong = "has more than one column {!r}" if count else "no column {!r}, which info.json lists"
            problems.append((wrong.format(key), True, None))
            continue
        whole = schema.field(key).type
        type_, depth = _leaf(whole)
        if mismatch := _mismatch(feature, type_):
            text = f"column {key!r} holds {type_name(type_)}, but info.json says {feature.dtype}"
            problems.append((text, mismatch == "other", _CAST_HINT if mismatch == "cast" else None))
        if feature.dtype == "image" or not _is_number(type_):
            continue
        if depth > max(1, len(feature.shape)) or math.prod(feature.shape[depth:]) != 1:
            shape = list(feature.shape)
            text = f"column {key!r} holds {type_name(whole)}, but info.json gives it the shape {shape}"
            problems.append((text, True, None))
        elif depth and len(leaves.get(key, ())) == 1:
            widths[key] = leaves[key][0], math.prod(feature.shape[:depth])
    if extra := sorted(set(schema.names) - info.features.keys()):
        problems.append((f"info.json does not list the column {', '.join(map(shown, extra[:3]))}", False, None))
    ranges = {key: leaves[key][0] for key in ("episode_index", "index") if len(leaves.get(key, ())) == 1}
    layout = Layout(schema, footer.num_columns, tuple(problems), widths, ranges)
    if len(layouts) < _MAX_LAYOUTS:
        layouts.append(layout)
    return layout


def _column_of(leaf: str) -> str:
    """The column of a leaf: "action" for "action.list.element". A key may have dots itself."""
    while leaf.endswith((".list.element", ".list.item", ".bag.array_element")):
        leaf = leaf.rsplit(".", 2)[0]
    return leaf


def _end_of_data(footer: Any) -> int:
    """Where the last row group's last column ends, bytes from the file's beginning."""
    if not footer.num_row_groups or not footer.num_columns:
        return 0
    column = footer.row_group(footer.num_row_groups - 1).column(footer.num_columns - 1)
    start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    return int(start) + int(column.total_compressed_size)


def _width_problems(info: DatasetInfo, path: Path, footer: Any, layout: Layout) -> Iterator[Problem]:
    values = dict.fromkeys(layout.widths, 0)
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        for key, (leaf, _) in layout.widths.items():
            # A missing or empty list counts as one.
            values[key] += row_group.column(leaf).num_values
    for key, (_, width) in layout.widths.items():
        if values[key] != footer.num_rows * width:
            yield Problem(
                f"{path}: column {key!r} has {values[key]} values in {footer.num_rows} rows, but info.json gives it "
                f"the shape {list(info.features[key].shape)}"
            )


def _leaf(type_: pa.DataType) -> tuple[pa.DataType, int]:
    """The type of the values in nested lists, and how deep they lie."""
    depth = 0
    while True:
        if isinstance(type_, pa.BaseExtensionType):
            type_ = type_.storage_type
        elif pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
            type_, depth = type_.value_type, depth + 1
        else:
            return type_, depth


def _mismatch(feature: Feature, type_: pa.DataType) -> str | None:
    """Whether a reader would cast ("cast") or stumble ("other")."""
    if feature.dtype == "image":
        return None
    try:
        expected = _ALIASES.get(feature.dtype) or pa.type_for_alias(feature.dtype)
    except ValueError:
        return None  # not a type that Arrow knows, so nothing is known about it
    if type_ == expected or (pa.types.is_string(expected) and pa.types.is_large_string(type_)):
        return None
    return "cast" if _is_number(type_) and _is_number(expected) else "other"


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_))


def _foreign_frames(
    episodes: Episodes, path: Path, positions: list[int], footer: Any, layout: Layout
) -> Iterator[Problem]:
    """Compares the range of `index` and `episode_index` in each row group, where the file has it, with its episodes."""
    index, first = episodes.index[positions].tolist(), episodes.from_index[positions].tolist()
    end = np.cumsum(episodes.length[positions]).tolist()
    row = 0
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        until = row + row_group.num_rows
        inside = range(bisect.bisect_right(end, row), min(bisect.bisect_left(end, until) + 1, len(end)))
        if row < until and inside:
            # Of each episode inside, the first and the last frame that lie in these rows.
            starts = [end[i - 1] if i else 0 for i in inside]
            low = min(first[i] + max(row - start, 0) for i, start in zip(inside, starts, strict=True))
            high = max(first[i] + min(until, end[i]) - start - 1 for i, start in zip(inside, starts, strict=True))
            numbers = [index[i] for i in inside]
            for key, expected in (("episode_index", (min(numbers), max(numbers))), ("index", (low, high))):
                if key not in layout.ranges:
                    continue
                seen = _range(row_group.column(layout.ranges[key]).statistics)
                if seen is None:
                    continue
                if seen != expected:
                    yield Problem(
                        f"{path}, rows {row} to {until - 1} ({named(numbers)}): {key} goes from {seen[0]} to "
                        f"{seen[1]}, expected {expected[0]} to {expected[1]}",
                        hint="The file holds frames of another episode. " + _VERSIONS_HINT,
                    )
                # Where episode_index fits, the frames are the episode's own: `index` is data.timestamps' to report.
                break
        row = until


def _range(statistics: Any) -> tuple[int, int] | None:
    if statistics is None or not statistics.has_min_max:
        return None
    low, high = statistics.min, statistics.max
    return (low, high) if type(low) is int and type(high) is int else None
