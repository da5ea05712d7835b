"""What several parts of the report ask of a run's files: its length, its machine, what the checklist measured."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable
from typing import Any

from preflight.report.run_read import RunFiles
from preflight.report.run_series import Series, number


def setting(files: RunFiles, name: str) -> Any:
    """A setting of `config.json`, None where it is not known."""
    return None if files.config is None else files.config.get(name)


def count_setting(files: RunFiles, name: str) -> int | None:
    """A setting that is a positive whole number, None where it is none."""
    value = setting(files, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def last_step(files: RunFiles) -> int | None:
    """The last step that was logged."""
    return int(files.metrics.times.x[-1]) if files.metrics.times.x else None


def has_gpu(files: RunFiles) -> bool | None:
    """Whether the run had a GPU; None where nothing tells."""
    if files.telemetry.times:
        return bool(files.telemetry.gpus())
    environment = (files.clearance or {}).get("environment")
    gpus = environment.get("gpus") if isinstance(environment, dict) else None
    return bool(gpus) if isinstance(gpus, list) else None


def checks_of(files: RunFiles) -> list[dict[str, Any]]:
    """The checks of `clearance.json` that can be read."""
    found = (files.clearance or {}).get("checks")
    return [c for c in found if isinstance(c, dict) and isinstance(c.get("id"), str)] if isinstance(found, list) else []


def measured(files: RunFiles, check: str, name: str) -> Any:
    """A value that a check measured, None where it did not."""
    for one in checks_of(files):
        if one["id"] == check and isinstance(one.get("measured"), dict):
            return one["measured"].get(name)
    return None


def loader_rate(files: RunFiles, workers: Any) -> tuple[float, float, float] | None:
    """Samples per second of the loader alone as the checklist measured it: median, low and high."""
    rates = measured(files, "loader.throughput", "samples_per_s")
    found = rates.get(str(workers)) if isinstance(rates, dict) else None
    return triple if isinstance(found, list) and len(triple := _positive(found)) == 3 else None  # type: ignore[return-value]


def demand(files: RunFiles) -> tuple[float, float] | None:
    """Samples per second that the device could take: low and high, from the roofline."""
    for check in ("step.roofline", "loader.starvation", "loader.throughput"):
        found = measured(files, check, "demand_samples_per_s")
        if isinstance(found, list) and len(pair := _positive(found)) == 2:
            return pair[0], pair[1]
    return None


def pace(files: RunFiles, upto: float = math.inf) -> float | None:
    """Steps per second: the median over the log intervals."""
    series = files.metrics.of("efficiency/steps_per_sec")
    found = [y for x, y in zip(series.x, series.y, strict=True) if x <= upto and math.isfinite(y)]
    if found:
        return statistics.median(found)
    return known(number((files.summary or {}).get("steps_per_sec"))) if math.isinf(upto) else None


def data_wait_share(files: RunFiles) -> float | None:
    """The share of time that steps waited for their batch, over all log intervals."""
    waits, paces = files.metrics.of("efficiency/data_wait"), files.metrics.of("efficiency/steps_per_sec")
    speed = dict(zip(paces.x, paces.y, strict=True))
    waited = spent = 0.0
    before: float | None = None
    starts = set(files.metrics.starts)
    steps = dict(zip(waits.x, waits.y, strict=True))
    for step in files.metrics.times.x:
        wait, rate = known(steps.get(step)), known(speed.get(step))
        if before is not None and step not in starts and wait is not None and rate is not None and rate > 0:
            waited += wait * (step - before)
            spent += (step - before) / rate
        before = step
    return waited / spent if spent else None


def in_training(files: RunFiles, name: str) -> list[float]:
    """The values of a telemetry series since the first step was logged: before that, checks and the compile run."""
    series = files.telemetry.of(name)
    times = [time for time in files.metrics.times.y if math.isfinite(time)]
    first = bisect.bisect_left(series.x, min(times)) if times else 0
    return [y for y in series.y[first:] if math.isfinite(y)]


def within(series: Series, low: float, high: float) -> list[float]:
    """The finite values of a series between two places."""
    return [y for x, y in zip(series.x, series.y, strict=True) if low <= x <= high and math.isfinite(y)]


def known(value: float | None) -> float | None:
    """A finite number, or None."""
    return value if value is not None and math.isfinite(value) else None


def _positive(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(n for value in values if (n := known(number(value))) is not None and n > 0)
