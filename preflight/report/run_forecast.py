"""What the checklist foretold, held against what the run did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from preflight.report.run_read import RunFiles
from preflight.report.run_series import Metrics, Telemetry, number
from preflight.report.run_view import (
    count_setting,
    data_wait_share,
    demand,
    has_gpu,
    in_training,
    known,
    loader_rate,
    measured,
    pace,
    setting,
)

# A figure this far beyond its forecast is still the forecast's: what the checks measure repeats to a few per cent.
TOLERANCE = 0.1
SHARE_TOLERANCE = 0.05  # for shares of time, whose forecast can be zero
_MIB, _GIB = 2**20, 2**30
_ROUNDED_GIB = 0.005  # sizes in clearance.json have two decimals
# Where rounding alone could move a forecast by more, a ratio would say nothing.
_TELLING = 0.2

Kind = Literal["about", "at-most"]
Judgement = Literal["held", "above", "below", "no-forecast", "not-observed", "not-comparable", "not-applicable"]


_NAMES = ("pace", "data-wait", "workers", "host", "device", "checkpoint")


def foretold(
    clearance: Mapping[str, Any] | None, config: Mapping[str, Any] | None
) -> dict[str, tuple[float, float] | None]:
    """What a checklist foretells, before the run.

    Args:
        clearance: What `clearance.json` will hold; None where no checks were made.
        config: What `config.json` will hold.

    Returns:
        Low and high of "pace" (steps/s), "data-wait" (share of the time), and in bytes "workers", "host", "device" and
        "checkpoint"; None where it foretells nothing. A pace that is a bound alone is no forecast: the step's own time
        is missing from it.
    """
    rows = forecast_rows(_before_the_run(clearance, config))
    found: dict[str, tuple[float, float] | None] = {}
    for name, row in zip(_NAMES, rows, strict=True):
        bound = name == "pace" and row["kind"] == "at-most"
        found[name] = None if bound or row["forecast"] is None else (row["forecast"][0], row["forecast"][1])
    return found


def _before_the_run(clearance: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> RunFiles:
    return RunFiles(
        folder=Path(),
        config=None if config is None else dict(config),
        clearance=None if clearance is None else dict(clearance),
        summary=None,
        summary_time=None,
        metrics=Metrics(),
        telemetry=Telemetry(),
        alerts=(),
        wandb_id=None,
        wandb_offline=False,
        checkpoints={},
        pictures={},
        notes=(),
    )


def forecast_rows(files: RunFiles) -> list[dict[str, Any]]:
    """One dict a quantity.

    Returns:
        ``name``; ``unit`` ("steps/s", "share" or "bytes"); ``kind``, "about" or "at-most"; ``forecast``, low and high,
        or None; ``observed``, or None; ``ratio`` of the observed to the middle of the forecast, or None;
        ``judgement``; ``forecast_source`` and ``observed_source``.
    """
    return [_pace(files), _wait(files), _workers(files), _host(files), _device(files), _checkpoint(files)]


def _pace(files: RunFiles) -> dict[str, Any]:
    batch = count_setting(files, "batch_size")
    rate = loader_rate(files, setting(files, "num_workers"))
    asked = demand(files)
    forecast, kind, source = None, "about", "needs loader.throughput, step.roofline and config.json"
    if batch is not None and rate is not None and asked is not None:
        forecast = (min(rate[1], asked[0]) / batch, min(rate[2], asked[1]) / batch)
        source = "loader.throughput and step.roofline: the slower of loader and GPU"
    elif batch is not None and rate is not None:
        forecast, kind = (rate[1] / batch, rate[2] / batch), "at-most"
        source = "loader.throughput: what the loader could feed; the step's own time was not foretold"
    return _row(
        "Steps per second", "steps/s", kind, forecast, source, pace(files), "median of efficiency/steps_per_sec"
    )


def _wait(files: RunFiles) -> dict[str, Any]:
    rate, asked = loader_rate(files, setting(files, "num_workers")), demand(files)
    forecast = None
    if rate is not None and asked is not None:
        forecast = (max(0.0, 1 - rate[2] / asked[0]), max(0.0, 1 - rate[1] / asked[1]))
    source = "loader.throughput against step.roofline" if forecast else "needs step.roofline, which needs a GPU's name"
    observed = "efficiency/data_wait of all log intervals"
    return _row("Time spent waiting for data", "share", "at-most", forecast, source, data_wait_share(files), observed)


def _workers(files: RunFiles) -> dict[str, Any]:
    foretold = known(number(measured(files, "memory.workers", "workers_mib")))
    return _row(
        "RAM of the loader's workers", "bytes", "at-most", _exact(foretold, _MIB), "memory.workers",
        max(in_training(files, "workers/pss_bytes"), default=None), "telemetry: peak PSS of all child processes",
    )  # fmt: skip


def _host(files: RunFiles) -> dict[str, Any]:
    workers = known(number(measured(files, "memory.workers", "workers_mib")))
    baseline = known(number(measured(files, "memory.workers", "baseline_mib")))
    foretold = None if workers is None or baseline is None else workers + baseline
    return _row(
        "RAM of the whole run", "bytes", "at-most", _exact(foretold, _MIB),
        "memory.workers: workers and the process above them",
        max(in_training(files, "tree/pss_bytes"), default=None), "telemetry: peak PSS of the run and its children",
    )  # fmt: skip


def _device(files: RunFiles) -> dict[str, Any]:
    foretold = known(number(measured(files, "memory.device", "step_gib")))
    peaks = [max(in_training(files, f"gpus/{i}/memory_used_bytes"), default=None) for i in files.telemetry.gpus()]
    name, source = "Memory of the fullest GPU", "memory.device: XLA's own compile"
    counted = known(number((files.summary or {}).get("device_peak_bytes")))
    if counted is not None:
        return _row(name, "bytes", "at-most", _rounded(foretold), source, counted, "JAX's allocator: the most it gave")
    row = _row(
        name, "bytes", "at-most", _rounded(foretold), source,
        max((peak for peak in peaks if peak is not None), default=None),
        "telemetry: what NVML tells, JAX's whole pool and not what the step takes of it",
    )  # fmt: skip
    if has_gpu(files) is False:
        return {**row, "judgement": "not-applicable", "ratio": None}
    # JAX takes its pool at the start, however much of it the step comes to use.
    return row if row["observed"] is None else {**row, "judgement": "not-comparable", "ratio": None}


def _checkpoint(files: RunFiles) -> dict[str, Any]:
    foretold = known(number(measured(files, "storage.space", "checkpoint_gib")))
    stored = known(number(measured(files, "storage.write", "stored_share")))
    source = "storage.space, uncompressed"
    interval = _rounded(foretold)
    if interval is not None and stored is not None and stored > 0:
        interval = (interval[0] * stored, interval[1] * stored)
        source = "storage.space, by the share that a rehearsed save (storage.write) stored"
    observed = files.checkpoints[max(files.checkpoints)] if files.checkpoints else None
    return _row("Size of a checkpoint", "bytes", "at-most", interval, source, observed, "the newest one's files")


def _exact(value: float | None, unit: int) -> tuple[float, float] | None:
    return None if value is None or value <= 0 else (value * unit, value * unit)


def _rounded(gib: float | None) -> tuple[float, float] | None:
    return None if gib is None else (max(0.0, gib - _ROUNDED_GIB) * _GIB, (gib + _ROUNDED_GIB) * _GIB)


def _row(
    name: str,
    unit: str,
    kind: str,
    forecast: tuple[float, float] | None,
    source: str,
    observed: float | None,
    how: str,
) -> dict[str, Any]:
    middle = sum(forecast) / 2 if forecast else None
    telling = unit != "bytes" or (forecast is not None and forecast[1] - forecast[0] <= 2 * _TELLING * (middle or 0))
    return {
        "name": name,
        "unit": unit,
        "kind": kind,
        "forecast": None if forecast is None else list(forecast),
        "observed": None if observed is None else float(observed),
        "ratio": observed / middle if observed is not None and middle and telling else None,
        "judgement": _judged(kind, unit, forecast, observed),
        "forecast_source": source,
        "observed_source": how,
    }


def _judged(kind: str, unit: str, forecast: tuple[float, float] | None, observed: float | None) -> Judgement:
    if observed is None:
        return "not-observed"
    if forecast is None:
        return "no-forecast"
    low, high = forecast
    if observed > high * (1 + TOLERANCE) + (SHARE_TOLERANCE if unit == "share" else 0):
        return "above"
    return "below" if kind == "about" and observed < low * (1 - TOLERANCE) else "held"
