"""Which charts a report has, in their order, each with its heading in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from preflight.report.run_criteria import GRAD_MAX_MOST, GRAD_NORM_MOST, LOSS_RANGE
from preflight.report.run_draw import SERIES, Drawing, draw, is_log
from preflight.report.run_numbers import THIN, count, figure

_GROUPS = {
    "Loss": ("loss", "loss_std", "loss_max", "loss_min"),
    "Gradients": ("grad_norm", "grad_max", "grad_mean"),
    "Parameters": ("param_norm", "update_norm", "update_ratio", "ema_distance", "learning_rate"),
    "Pace": (
        "efficiency/steps_per_sec",
        "efficiency/samples_per_sec",
        "efficiency/time_per_step",
        "efficiency/data_wait",
        "efficiency/goodput",
    ),
}
_THRESHOLDS = {"loss": LOSS_RANGE, "grad_norm": (0.1, GRAD_NORM_MOST), "grad_max": (GRAD_MAX_MOST,)}
_UNITS = {"efficiency/time_per_step": "s", "efficiency/data_wait": "s"}
_SEVERITIES = {"stop": "bad", "warn": "warn", "note": "faint"}
_MOST_MARKS = 50  # alerts; more would hide the curves
_MIB, _GIB, _MB = 2.0**20, 2.0**30, 1e6
_HARDWARE = (
    ("Waiting for data", (("data_wait_share", "of the log interval"),), "%", 0.01),
    ("CPU", (("main/cpu_cores", "main process"), ("workers/cpu_cores", "child processes (workers)")), "cores", 1.0),
    (
        "RAM of the run",
        (
            ("tree/pss_bytes", "whole run"),
            ("main/pss_bytes", "main process"),
            ("workers/pss_bytes", "child processes (workers)"),
        ),
        "GiB",
        _GIB,
    ),
    ("RAM that is available", (("host_memory/available_bytes", "to the run"),), "GiB", _GIB),
    ("Storage", (("tree/read_bytes_per_s", "read"), ("tree/written_bytes_per_s", "written")), "MB/s", _MB),
    ("Free disk", (("disk/free_bytes", "below the run's folder"),), "GiB", _GIB),
    (
        "Network of the machine",
        (("network/received_bytes_per_s", "received"), ("network/sent_bytes_per_s", "sent")),
        "MB/s",
        _MB,
    ),
)
_GPU = (
    ("GPU utilisation", "utilization_percent", "%", 1.0, 100.0),
    ("GPU memory", "memory_used_bytes", "GiB", _GIB, None),
    ("GPU power", "power_w", "W", 1.0, None),
    ("GPU temperature", "temperature_c", "°C", 1.0, None),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with what stands around it; all of it plain text but the SVG."""

    group: str
    title: str
    facts: str  # below the title
    legend: tuple[tuple[str, str], ...]  # colour and text; none for a single curve
    warning: str | None  # what was no finite number
    svg: str


def metric_charts(metrics: Mapping[str, Any], alerts: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """A chart for each metric over the steps; the ones known by name first, in their groups."""
    places = {name: group for group, names in _GROUPS.items() for name in names}
    names = [name for name in places if name in metrics] + sorted(set(metrics) - set(places))
    span = _span(metrics.values())
    marks = [(float(a["step"]), _SEVERITIES.get(str(a["severity"]), "warn")) for a in alerts if a["step"] is not None]
    drawings = [
        Drawing(
            name=f"metric-{number}",  # not the metric's own: what comes from outside stays outside of the SVG
            curves=[metrics[name]],
            span=span,
            log=False if name in ("learning_rate", "param_norm") or name.startswith("efficiency/") else None,
            from_zero=name.startswith("efficiency/") or name == "learning_rate",
            limits=_THRESHOLDS.get(name, ()),
            marks=marks[:_MOST_MARKS],
        )
        for number, name in enumerate(names)
    ]
    return [
        Chart(
            group=places.get(name, "Further metrics"),
            title=name,
            facts=_facts(metrics[name], _UNITS.get(name, ""), is_log(drawing)),
            legend=(),
            warning=_not_finite(metrics[name]),
            svg=svg,
        )
        for name, drawing, svg in zip(names, drawings, draw(drawings), strict=True)
    ]


def hardware_charts(over_time: Mapping[str, Any]) -> tuple[list[Chart], str]:
    """A chart for each thing that was watched, and the unit of their horizontal axis; none where nothing was."""
    curves, seconds = over_time["curves"], over_time["seconds"] or 0.0
    unit, x_scale = _time_unit(seconds)
    breaks = [pause["at_s"] for pause in over_time["pauses"]]
    planned: list[tuple[str, list[str], list[str], str, Drawing]] = []

    def plan(title: str, names: list[str], labels: list[str], unit: str, scale: float, top: float | None) -> None:
        if scale == _GIB and max(curves[name]["greatest"] for name in names) < _GIB:
            unit, scale = "MiB", _MIB
        limit = over_time["limit_bytes"] if title == "RAM of the run" else None
        drawing = Drawing(
            name=f"time-{len(planned)}",
            curves=[curves[name] for name in names],
            scale=scale,
            span=(0.0, seconds),
            x_scale=x_scale,
            log=False,
            from_zero=True,
            top=top,
            limits=() if limit is None else (limit,),
            breaks=breaks,
        )
        planned.append((title, names, labels, unit, drawing))

    for title, wanted, unit_, scale in _HARDWARE:
        there = [(name, label) for name, label in wanted if name in curves]
        if there:
            names, labels = (list(part) for part in zip(*there, strict=True))
            plan(title, names, labels, unit_, scale, None)
    for title, name, unit_, scale, top in _GPU:
        there = [(f"gpus/{gpu}/{name}", f"GPU {gpu}") for gpu in over_time["gpus"] if f"gpus/{gpu}/{name}" in curves]
        for first in range(0, len(there), len(SERIES)):
            part = there[first : first + len(SERIES)]
            numbers = f" ({part[0][1][4:]} to {part[-1][1][4:]})" if len(there) > len(SERIES) else ""
            plan(title + numbers, [n for n, _ in part], [label for _, label in part], unit_, scale, top)
    charts = [
        _hardware_chart(title, [curves[name] for name in names], labels, unit_, drawing, over_time, svg)
        for (title, names, labels, unit_, drawing), svg in zip(planned, draw([p[-1] for p in planned]), strict=True)
    ]
    return charts, unit


def _hardware_chart(
    title: str,
    curves: list[Mapping[str, Any]],
    labels: list[str],
    unit: str,
    drawing: Drawing,
    over_time: Mapping[str, Any],
    svg: str,
) -> Chart:
    legend = tuple(
        (colour, f"{label}: {_between(one, drawing.scale)}{THIN}{unit}")
        for colour, label, one in zip(SERIES, labels, curves, strict=False)
    )
    facts = unit
    if len(curves) == 1:
        facts, legend = f"{labels[0]}, {_between(curves[0], drawing.scale)}{THIN}{unit}", ()
    if drawing.limits and over_time["limit_bytes"]:
        facts = f"{unit}, limit {figure(over_time['limit_bytes'] / drawing.scale)}"
    return Chart(
        group="GPU" if title.startswith("GPU") else "Host", title=title, facts=facts, legend=legend, warning=None,
        svg=svg,
    )  # fmt: skip


def _facts(one: Mapping[str, Any], unit: str, log: bool) -> str:
    if one["last"] is None:
        return "no finite value"
    unit = f"{THIN}{unit}" if unit else ""
    scale = ", log scale" if log else ""
    return f"last {figure(one['last'])}{unit}, {figure(one['least'])} to {figure(one['greatest'])}{unit}{scale}"


def _not_finite(one: Mapping[str, Any]) -> str | None:
    if not one["not_finite"]:
        return None
    steps = ", ".join(count(step) for step in one["not_finite_at"][:5])
    more = ", …" if one["not_finite"] > 5 else ""
    return f"NaN or infinite in {count(one['not_finite'])} of {count(one['points'])} records: step {steps}{more}"


def _between(one: Mapping[str, Any], scale: float) -> str:
    low, high = (figure(float(f"{one[key] / scale:.3g}")) for key in ("least", "greatest"))
    return low if low == high else f"{low} to {high}"


def _span(curves: Any) -> tuple[float, float] | None:
    places = [place for one in curves for place in (one["x"][:1] + one["x"][-1:])]
    return (min(places), max(places)) if places else None


def _time_unit(seconds: float) -> tuple[str, float]:
    for unit, length in (("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0)):
        if seconds < 150 * length:
            return unit, length
    return ("hours", 3600.0) if seconds < 4 * 86400 else ("days", 86400.0)
