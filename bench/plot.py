"""A sweep as a picture: throughput and RAM against the number of workers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from bench.results import PointResult, SweepResult
from preflight.errors import UsageError
from preflight.report.plain import printable
from preflight.report.plot_style import plot_style
from preflight.whole_file import require_writable, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png", ".pdf")

# Of Okabe and Ito's palette, which people with any colour vision can tell apart; on grey print by lightness and hatch.
_BLUE, _VERMILION, _SKY, _GREY = "#0072B2", "#D55E00", "#9CCFEC", "#555555"
# A date, or the version of the library, would make two drawings of one result differ.
_METADATA: dict[str, dict[str, None]] = {
    ".svg": {"Date": None, "Creator": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
# A limit within this many times the highest bar is drawn; farther away it would press the bars to the floor.
_LIMIT_IN_VIEW = 1.6
_DEMAND_IN_VIEW = 2.0
# Of the panel's height to what is highest in it, for the text above that.
_HEADROOM = 1.25
# More figures than these would run into each other.
_MOST_LABELLED = 18
_ON_WHITE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}


def require_plottable(option: str, path: Path) -> None:
    """Tries a picture's path before anything is measured for it; leaves no trace.

    Raises:
        UsageError: Its extension is not one of `FORMATS`, or it cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{option} {path}: a plot is one of {', '.join(FORMATS)}",
            f"name it {path.parent / (path.stem or 'sweep')}.svg",
        )
    require_writable(option, path)


def save_plot(result: SweepResult, path: Path) -> None:
    """Draws a sweep into a file, in the format that its extension says; the same result gives the same bytes.

    Args:
        result: Of ``bench.sweep``.
        path: Ends in one of `FORMATS`.

    Raises:
        OSError: It cannot be written.
    """
    suffix, content = path.suffix.lower(), io.BytesIO()
    with plot_style():
        draw_sweep(result).savefig(content, format=suffix[1:], dpi=150, metadata=_METADATA[suffix])
    write_whole(path, content.getvalue())


def draw_sweep(result: SweepResult) -> Figure:
    """Throughput with its intervals above, RAM of all workers below.

    Args:
        result: Of ``bench.sweep``; any number of points.
    """
    from matplotlib.figure import Figure

    numbers = sorted({point.num_workers for point in result.points} | set(result.not_measured))
    # Numbers of workers double, as a rule: evenly spaced, each can be read.
    places = {number: float(place) for place, number in enumerate(numbers)}
    count = len(numbers)
    figure = Figure(figsize=(min(16.0, max(6.4, 1.6 + 0.8 * count)), 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_throughput(upper, result, places)
    _draw_memory(lower, result, places)
    lower.set_xticks(list(places.values()), [str(number) for number in numbers])
    margin = 0.6 + 0.3 * max(0, 5 - count)  # so that a few bars are not broad
    lower.set_xlim(-margin, count - 1 + margin)
    lower.set_xlabel("workers")
    figure.suptitle(_title(result), x=0.01, ha="left", fontsize=10)
    figure.supxlabel(_footer(result), x=0.01, ha="left", fontsize=7, color=_GREY)
    return figure


def _title(result: SweepResult) -> str:
    name = result.config or (result.dataset.description if result.dataset else None) or "data loader"
    return printable(f"{name}: loading in batches of {result.batch_size}")


def _footer(result: SweepResult) -> str:
    environment = result.environment
    cpus = environment.get("cpus_usable")
    machine = [
        str(environment.get("cpu") or "unknown CPU"),
        f"{cpus:g} usable CPUs" if isinstance(cpus, int | float) else "",
        str(environment.get("platform") or ""),
    ]
    return ", ".join(part for part in machine if part)


def _draw_throughput(axes: Axes, result: SweepResult, places: dict[int, float]) -> None:
    points = result.points
    axes.plot(
        [places[point.num_workers] for point in points],
        [point.samples_per_s.median for point in points],
        color=_BLUE, linewidth=0.8, alpha=0.5,
    )  # fmt: skip
    meaning = "median, 95 % interval"
    others = [point for point in points if point.num_workers != result.recommended_num_workers]
    chosen = [point for point in points if point not in others]
    if others:
        _draw_points(axes, others, places, _BLUE, "o", meaning)
    if chosen:
        said = "recommended" if others else f"recommended: {meaning}"
        _draw_points(axes, chosen, places, _VERMILION, "D", said)
    top = max(point.samples_per_s.hi for point in points)
    demand = result.demand_samples_per_s
    if demand is not None and demand <= _DEMAND_IN_VIEW * top:
        top = max(top, demand)
        _draw_line(axes, demand, "--", f"the training step's demand, {_figure(demand)} samples/s")
    elif demand is not None:
        _say(axes, f"the training step's demand, {_figure(demand)} samples/s, is beyond this scale")
    for number in result.not_measured:
        axes.text(
            places[number], 0.03, "not measured", transform=axes.get_xaxis_transform(), rotation=90, ha="center",
            va="bottom", color=_GREY, fontsize=8,
        )  # fmt: skip
    axes.set_ylim(0, _HEADROOM * top)
    axes.set_ylabel("samples/s")
    _legend(axes)


def _draw_points(
    axes: Axes, points: list[PointResult], places: dict[int, float], colour: str, marker: str, label: str
) -> None:
    x = [places[point.num_workers] for point in points]
    rates = [point.samples_per_s for point in points]
    spread = ([rate.median - rate.lo for rate in rates], [rate.hi - rate.median for rate in rates])
    axes.errorbar(
        x, [rate.median for rate in rates], yerr=spread, markersize=5, capsize=4, fmt=marker, color=colour, label=label
    )
    if len(places) <= _MOST_LABELLED:
        for place, rate in zip(x, rates, strict=True):
            _label(axes, place, rate.hi, _figure(rate.median))


def _draw_memory(axes: Axes, result: SweepResult, places: dict[int, float]) -> None:
    memory = result.memory
    totals = [_total_mib(point) for point in result.points]
    highest = max(totals)
    limit_in_view = memory.limit_mib <= _LIMIT_IN_VIEW * highest
    top = max(highest, memory.limit_mib if limit_in_view else 0.0)
    unit, scale = ("GiB", 1024.0) if top >= 2048 else ("MiB", 1.0)
    x = [places[point.num_workers] for point in result.points]
    parent = [(point.parent_mib or 0.0) / scale for point in result.points]
    workers = [(point.workers_mib or 0.0) / scale for point in result.points]
    axes.bar(
        x, parent, width=0.5, color=_SKY, edgecolor=_BLUE, linewidth=0.6, hatch="///", label="parent and worker server"
    )
    axes.bar(x, workers, width=0.5, bottom=parent, color=_BLUE, label="all workers, with the batches that wait")
    if len(places) <= _MOST_LABELLED:
        for place, total in zip(x, totals, strict=True):
            _label(axes, place, total / scale, f"{total / scale:.1f}" if scale > 1 else f"{total:.0f}")
    limit = printable(f"limit {memory.limit_mib / 1024:.1f} GiB ({memory.limit_source})")
    if limit_in_view:
        _draw_line(axes, memory.limit_mib / scale, "-.", limit)
    else:
        _say(axes, f"{limit}, beyond this scale")
    axes.set_ylim(0, _HEADROOM * top / scale if top else 1.0)
    axes.set_ylabel(f"RAM, {unit} (PSS)")
    _legend(axes)


def _total_mib(point: PointResult) -> float:
    return (point.parent_mib or 0.0) + (point.workers_mib or 0.0)


def _label(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=8, zorder=4,
        bbox=_ON_WHITE,
    )  # fmt: skip


def _draw_line(axes: Axes, y: float, style: str, text: str) -> None:
    axes.axhline(y, color=_VERMILION, linestyle=style, linewidth=1.2)
    axes.annotate(
        text, (0.01, y), xycoords=axes.get_yaxis_transform(), xytext=(0, 3), textcoords="offset points", va="bottom",
        fontsize=8, color=_VERMILION, bbox=_ON_WHITE,
    )  # fmt: skip


def _say(axes: Axes, text: str) -> None:
    # On the left, since more workers bring more, as a rule.
    axes.text(
        0.01, 0.99, text, transform=axes.transAxes, va="top", fontsize=8, color=_VERMILION, zorder=4, bbox=_ON_WHITE
    )


def _legend(axes: Axes) -> None:
    # Above the panel, where it covers no figure.
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize=8, borderaxespad=0.2, handlelength=1.8,
        columnspacing=1.2,
    )  # fmt: skip


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
