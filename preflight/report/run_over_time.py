"""What the machine did while the run was running: curves over the time of running."""

from __future__ import annotations

import math
from typing import Any

from preflight.report.run_curves import curve, rate, run_clock
from preflight.report.run_read import RunFiles
from preflight.report.run_series import Series

# Of a sample's numbers, in the order of the charts; the unit is that of the curve.
_AS_THEY_ARE = (
    ("main/cpu_cores", "cores"),
    ("workers/cpu_cores", "cores"),
    ("main/pss_bytes", "bytes"),
    ("workers/pss_bytes", "bytes"),
    ("tree/pss_bytes", "bytes"),
    ("host_memory/available_bytes", "bytes"),
    ("disk/free_bytes", "bytes"),
)
_RATES = ("tree/read_bytes", "tree/written_bytes", "network/received_bytes", "network/sent_bytes")
_GPU = (
    ("utilization_percent", "percent"),
    ("memory_used_bytes", "bytes"),
    ("power_w", "watt"),
    ("temperature_c", "celsius"),
)
# What NVML calls a throttle reason without anything being throttled that should not be.
_HARMLESS = ("gpu_idle", "applications_clocks_setting", "sync_boost", "display_clock_setting")


def over_time(files: RunFiles) -> dict[str, Any]:
    """Curves over the seconds of running.

    Returns:
        ``began`` (Unix seconds, None where nothing tells), ``seconds`` of running, ``pauses`` (``{at_s, seconds}``),
        ``samples`` of telemetry, ``limit_bytes`` of the RAM, ``gpus`` (their indices), ``throttled`` (share of the
        samples for each GPU's reason, those that are no fault left out) and ``curves`` by name, each with its ``unit``.
    """
    clock = run_clock(files)
    if clock is None:
        return {
            "began": None, "seconds": None, "pauses": [], "samples": 0, "limit_bytes": None, "gpus": [],
            "throttled": {}, "curves": {},
        }  # fmt: skip
    telemetry = files.telemetry
    curves: dict[str, Any] = {}

    def add(name: str, unit: str, series: Series) -> None:
        if any(map(math.isfinite, series.y)):
            curves[name] = {"unit": unit, **curve(clock.series(series))}

    add("data_wait_share", "share", _waiting(files))
    for name, unit in _AS_THEY_ARE:
        add(name, unit, telemetry.of(name))
    for name in _RATES:
        add(f"{name}_per_s", "bytes/s", rate(telemetry.of(name)))
    for gpu in telemetry.gpus():
        for name, unit in _GPU:
            add(f"gpus/{gpu}/{name}", unit, telemetry.of(f"gpus/{gpu}/{name}"))
    limit = telemetry.of("host_memory/limit_bytes").finite()
    ends = [*telemetry.times[-1:], *(t for t in files.metrics.times.y[-1:] if math.isfinite(t))]
    return {
        "began": clock.began,
        "seconds": max(map(clock.at, ends), default=0.0),
        "pauses": [{"at_s": clock.at(start), "seconds": end - start} for start, end in clock.pauses],
        "samples": len(telemetry.times),
        "limit_bytes": limit[-1] if limit else None,
        "gpus": telemetry.gpus(),
        "throttled": _throttled(files),
        "curves": curves,
    }


def start_list(files: RunFiles) -> list[dict[str, Any]]:
    """Each start of a process: the ``step`` it began with, its ``time``, and ``pause_s`` since the record before.

    A start is a record without a pace, as each process's first one is.
    """
    times = dict(zip(files.metrics.times.x, files.metrics.times.y, strict=True))
    before = dict(zip(files.metrics.times.x[1:], files.metrics.times.y[:-1], strict=True))
    found = []
    for step in files.metrics.starts:
        time, earlier = times.get(step, math.nan), before.get(step, math.nan)
        gap = time - earlier
        found.append(
            {
                "step": int(step),
                "time": time if math.isfinite(time) else None,
                "pause_s": gap if math.isfinite(gap) else None,
            }
        )
    return found


def _waiting(files: RunFiles) -> Series:
    """The share of each log interval that steps waited for their batch, over Unix time."""
    waits, paces = files.metrics.of("efficiency/data_wait"), files.metrics.of("efficiency/steps_per_sec")
    speed = dict(zip(paces.x, paces.y, strict=True))
    times = dict(zip(files.metrics.times.x, files.metrics.times.y, strict=True))
    found = Series()
    for step, wait in zip(waits.x, waits.y, strict=True):
        time = times.get(step, math.nan)
        if step in speed and math.isfinite(time) and time > 0:
            found.add(max(time, found.x[-1]) if found.x else time, min(1.0, wait * speed[step]))
    return found


def _throttled(files: RunFiles) -> dict[str, float]:
    found = {}
    for name, series in files.telemetry.series.items():
        parts = name.split("/")
        if len(parts) == 4 and parts[2] == "throttle_reasons" and parts[3] not in _HARMLESS:
            found[f"GPU {parts[1]}: {parts[3]}"] = len(series.y) / len(files.telemetry.times)
    return dict(sorted(found.items(), key=lambda item: -item[1]))
