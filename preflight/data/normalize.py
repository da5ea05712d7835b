"""Normalisation of state and actions: the statistics, their file, and openpi's two formulas."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64

from preflight.data.files import read_json
from preflight.errors import DataError
from preflight.whole_file import write_whole

# openpi adds it to every divisor (openpi/transforms.py, Normalize).
EPSILON = 1e-6

QUANTILES = (0.01, 0.99)

_BLOCK = 1 << 20  # values converted to float64 at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormStats:
    """Statistics of each dimension."""

    mean: Float64[np.ndarray, " d"]
    std: Float64[np.ndarray, " d"]  # of the population: divided by n
    q01: Float64[np.ndarray, " d"]
    q99: Float64[np.ndarray, " d"]


def compute(x: Float[np.ndarray, "n d"]) -> NormStats:
    """Computes exact statistics: sums in float64, quantiles of all values with linear interpolation.

    Args:
        x: One row a sample.

    Returns:
        The statistics, as numpy gives them.
    """
    columns = [_column_stats(x[:, column]) for column in range(x.shape[1])]
    mean, std, q01, q99 = np.array(columns, dtype=np.float64).reshape(-1, 4).T
    return NormStats(mean=mean, std=std, q01=q01, q99=q99)


def normalize(x: Float[np.ndarray, "*batch d"], stats: NormStats, kind: Literal["zscore", "quantile"]) -> np.ndarray:
    """Applies openpi's formula: (x - mean) / (std + 1e-6), or (x - q01) / (q99 - q01 + 1e-6) * 2 - 1.

    Args:
        x: Values; the last axis are the dimensions.
        stats: The statistics of these dimensions.
        kind: Which formula.

    Returns:
        float32, the shape of x.
    """
    if kind == "zscore":
        return ((x - stats.mean) / (stats.std + EPSILON)).astype(np.float32)
    return ((x - stats.q01) / (stats.q99 - stats.q01 + EPSILON) * 2 - 1).astype(np.float32)


def unnormalize(x: Float[np.ndarray, "*batch d"], stats: NormStats, kind: Literal["zscore", "quantile"]) -> np.ndarray:
    """Inverts `normalize`.

    Args:
        x: Normalised values; the last axis are the dimensions.
        stats: The statistics of these dimensions.
        kind: Which formula.

    Returns:
        float32, the shape of x.
    """
    if kind == "zscore":
        return (x * (stats.std + EPSILON) + stats.mean).astype(np.float32)
    return ((x + 1) / 2 * (stats.q99 - stats.q01 + EPSILON) + stats.q01).astype(np.float32)


def load(path: Path) -> dict[str, NormStats]:
    """Reads a norm_stats.json of openpi or ours.

    Args:
        path: The file.

    Returns:
        The statistics by name ("state", "actions").

    Raises:
        DataError: if the file is missing, damaged or not of that format.
    """
    raw = read_json(path)
    stats = raw.get("norm_stats") if isinstance(raw, dict) else None
    if not isinstance(stats, dict):
        raise DataError(f'{path} is no norm_stats.json: it has no object "norm_stats"')
    for name in ("state", "actions"):
        if name not in stats:
            raise DataError(f"{path}: norm_stats has no {name!r}", f"It has: {', '.join(stats) or 'nothing'}")
    return {name: _parse(entry, name, path) for name, entry in stats.items()}


def stats_to_json(stats: Mapping[str, NormStats]) -> dict[str, Any]:
    """Gives the content of a norm_stats.json, as openpi writes it.

    Args:
        stats: The statistics by name ("state", "actions").

    Returns:
        Plain lists and dicts.
    """
    return {
        "norm_stats": {name: {k: v.tolist() for k, v in dataclasses.asdict(s).items()} for name, s in stats.items()}
    }


def save(stats: Mapping[str, NormStats], path: Path) -> None:
    """Writes a norm_stats.json that openpi can read; a reader never sees half a file.

    Args:
        stats: The statistics by name ("state", "actions").
        path: The file; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(stats_to_json(stats), indent=2) + "\n").encode())


def fit_to(stats: NormStats, width: int, name: str, path: Path) -> NormStats:
    """Makes loaded statistics match the data's width.

    openpi slices longer statistics silently; here only the zeros are cut that it computes for padded dimensions.

    Args:
        stats: The statistics.
        width: Dimensions of the data.
        name: What they are statistics of, for the message.
        path: The file they are from, for the message.

    Returns:
        Statistics with that many dimensions.

    Raises:
        DataError: if they are of other data.
    """
    have = len(stats.mean)
    padding = (stats.mean[width:] == 0).all() and (stats.std[width:] == 0).all()
    if have < width or not padding:
        raise DataError(
            f"{path}: the statistics of {name!r} have {have} dimensions, the dataset's {name} has {width}",
            "They were computed from another dataset or with other transforms: compute them again.",
        )
    return NormStats(**{field.name: getattr(stats, field.name)[:width] for field in dataclasses.fields(stats)})


def _parse(entry: Any, name: str, path: Path) -> NormStats:
    values: dict[str, np.ndarray] = {}
    for field in ("mean", "std", "q01", "q99"):
        raw = entry.get(field) if isinstance(entry, dict) else None
        if raw is None and field.startswith("q") and "mean" in values:
            # openpi allows files without quantiles; NaN then shows up at once if they are asked for.
            raw = [float("nan")] * len(values["mean"])
        numbers = isinstance(raw, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in raw)
        if not numbers:
            raise DataError(f"{path}: norm_stats[{name!r}][{field!r}] must be a list of numbers")
        values[field] = np.array(raw, dtype=np.float64)
    if len({len(v) for v in values.values()}) != 1:
        lengths = ", ".join(f"{field} {len(v)}" for field, v in values.items())
        raise DataError(f"{path}: the lists of norm_stats[{name!r}] differ in length ({lengths})")
    return NormStats(**values)


def _column_stats(column: np.ndarray) -> tuple[float, float, float, float]:
    blocks = [column[start : start + _BLOCK] for start in range(0, len(column), _BLOCK)]
    mean = sum(float(block.astype(np.float64).sum()) for block in blocks) / len(column)
    variance = sum(float(((block.astype(np.float64) - mean) ** 2).sum()) for block in blocks) / len(column)
    ranks = [q * (len(column) - 1) for q in QUANTILES]
    below = [int(rank) for rank in ranks]
    above = [min(rank + 1, len(column) - 1) for rank in below]
    ordered = np.partition(column, sorted({*below, *above}))
    low, high = (
        float(ordered[lo]) + (float(ordered[hi]) - float(ordered[lo])) * (rank - lo)
        for rank, lo, hi in zip(ranks, below, above, strict=True)
    )
    return mean, variance**0.5, low, high
