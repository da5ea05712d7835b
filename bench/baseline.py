"""Stored sweeps to compare with: JSON files below the working directory, so that they belong to the project.

A baseline is the JSON of ``SweepResult.to_json``, which says what it was measured on. Figures of a loader are of one
machine and one project, hence they lie beside the project and not in the user's cache.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.comparison import Baseline, OldPoint
from bench.results import SCHEMA_VERSION, SweepResult
from bench.statistics import Estimate, batches_in_turn
from preflight.config.load import is_folder_name
from preflight.errors import PreflightError, UsageError
from preflight.suggest import unknown
from preflight.whole_file import require_writable, write_whole

FOLDER = Path(".preflight") / "bench"


def baseline_path(name: str, folder: Path = FOLDER) -> Path:
    """The file of a baseline.

    Raises:
        UsageError: The name is no plain file name.
    """
    if not is_folder_name(name) or name.startswith("."):
        raise UsageError(
            f"{name!r} cannot be a baseline's name", "a plain file name without a folder, like main or before-h265"
        )
    return folder / f"{name}.json"


def baseline_names(folder: Path = FOLDER) -> list[str]:
    """The baselines that are stored."""
    try:
        return sorted(path.stem for path in folder.glob("[!.]*.json") if path.is_file())
    except OSError:
        return []


def require_saveable(name: str, folder: Path = FOLDER) -> None:
    """Tries whether a baseline could be stored, before it is measured; leaves no trace.

    Raises:
        UsageError: It could not.
    """
    path = baseline_path(name, folder)
    nearest = path.parent.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if nearest == path.parent.absolute():
        require_writable(f"--save {name}:", path)
    elif not nearest.is_dir():
        raise UsageError(f"--save {name}: {path} cannot be written: {nearest} is no folder")
    else:
        require_writable(f"--save {name}:", nearest / path.name)


def save_baseline(result: SweepResult, name: str, folder: Path = FOLDER) -> Path:
    """Stores a sweep under a name; one that is there already is replaced.

    Returns:
        The file.

    Raises:
        UsageError: The name is no plain file name.
        PreflightError: It cannot be written.
    """
    path = baseline_path(name, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(result.to_json(), indent=2) + "\n").encode())
    except OSError as error:
        raise PreflightError(f"the baseline {path} cannot be written: {error.strerror or error}") from error
    return path


def load_baseline(name: str, folder: Path = FOLDER) -> Baseline:
    """Reads a stored sweep.

    Raises:
        UsageError: There is none of this name (lists those that are there), or its file is damaged.
    """
    path = baseline_path(name, folder)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        message, hint = unknown("baseline", name, names := baseline_names(folder))
        raise UsageError(
            message, f"{hint}; in {folder}" if names else f"{folder} holds none; store one with --save {name}"
        ) from None
    except OSError as error:
        raise UsageError(f"the baseline {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise _damaged(path, "it is no text") from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is no JSON ({error})") from None
    try:
        return Baseline(name=name, document=document, points=_points(document))
    except _DamagedError as error:
        raise _damaged(path, str(error)) from None


class _DamagedError(Exception):
    pass


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(
        f"the baseline {path} is damaged: {why}", f"delete it and measure it again with --save {path.stem}"
    )


def _points(document: Any) -> dict[int, OldPoint]:
    if not isinstance(document, Mapping):
        raise _DamagedError("it holds no JSON object")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise _DamagedError(f"its schema_version is {version!r}, not {SCHEMA_VERSION}")
    if document.get("complete") is not True:
        raise _DamagedError("it is no complete sweep")
    entries, raw = _list(document, "points"), _list(document, "raw")
    intervals = {_count(entry, "raw"): _intervals(entry) for entry in raw}
    points = {}
    for entry in entries:
        number = _count(entry, "points")
        if number not in intervals:
            raise _DamagedError(f"raw lacks the intervals of {number} workers")
        if not any(len(one) >= batches_in_turn(number) for one in intervals[number]):
            raise _DamagedError(f"raw holds too few intervals of {number} workers")
        points[number] = OldPoint(
            num_workers=number,
            samples_per_s=_estimate(entry, number),
            intervals_s=intervals[number],
            pss_mib=_memory(entry, number, "pss"),
            uss_mib=_memory(entry, number, "uss"),
        )
    return points


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list) or not value:
        raise _DamagedError(f"{key} is no list of points")
    return value


def _count(entry: Any, where: str) -> int:
    number = entry.get("num_workers") if isinstance(entry, Mapping) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise _DamagedError(f"{where} has an entry without num_workers")
    return number


def _intervals(entry: Mapping[str, Any]) -> tuple[tuple[float, ...], ...]:
    rounds = entry.get("batch_intervals_s")
    if not isinstance(rounds, list) or not all(isinstance(one, list) and all(map(_is_figure, one)) for one in rounds):
        raise _DamagedError(f"batch_intervals_s of {entry['num_workers']} workers are no lists of seconds")
    if any(one and not sum(one) > 0 for one in rounds):
        raise _DamagedError(f"batch_intervals_s of {entry['num_workers']} workers are all 0")
    return tuple(tuple(float(value) for value in one) for one in rounds)


def _estimate(entry: Mapping[str, Any], number: int) -> Estimate:
    rate = entry.get("samples_per_s")
    rate = rate if isinstance(rate, Mapping) else {}
    interval = rate.get("ci95")
    values = [rate.get("median"), *(interval if isinstance(interval, list) and len(interval) == 2 else (None, None))]
    if not all(_is_figure(value) and value > 0 for value in values):
        raise _DamagedError(f"samples_per_s of {number} workers is no median with an interval")
    return Estimate(*(float(value) for value in values))


def _memory(entry: Mapping[str, Any], number: int, kind: str) -> float | None:
    memory = entry.get("memory_per_worker_mib")
    if not isinstance(memory, Mapping):
        raise _DamagedError(f"memory_per_worker_mib of {number} workers is missing")
    value = memory.get(kind)
    if value is not None and not _is_figure(value):
        raise _DamagedError(f"memory_per_worker_mib of {number} workers is no number")
    return None if value is None else float(value)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
