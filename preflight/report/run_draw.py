"""Small charts as SVG that takes its colours from the page, so that they are right by day, by night and on paper."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from preflight.report.plot_style import plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 270, 140  # pixels on a page that shows it at its own size
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 8, 22
_LOG_FROM = 50.0  # the greatest to the least value, from which a logarithmic axis shows more
_MARKED_POINTS = 30
_ROUND = (1, 2, 2.5, 5, 10)
_LIMIT_IN_VIEW = 1.6

# matplotlib writes colours as numbers: these stand for the page's own until the drawing is done.
_COLOURS = {
    "ink": "#00000a",
    "faint": "#00000b",
    "rule": "#00000c",
    "series-1": "#00000d",
    "series-2": "#00000e",
    "series-3": "#00000f",
    "bad": "#00001a",
    "warn": "#00001b",
}
SERIES = ("series-1", "series-2", "series-3")
_STYLE = {
    "font.size": 10.5,
    "axes.edgecolor": _COLOURS["rule"],
    "axes.linewidth": 1.0,
    "axes.spines.left": False,
    "grid.color": _COLOURS["rule"],
    "grid.linewidth": 1.0,
    "text.color": _COLOURS["faint"],
    "xtick.color": _COLOURS["faint"],
    "ytick.color": _COLOURS["faint"],
    "ytick.major.size": 0.0,
    "xtick.major.size": 3.0,
    "xtick.major.width": 1.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "svg.image_inline": True,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """What a chart shows; curves as `run_curves.curve` makes them."""

    name: str  # of this chart alone on its page
    curves: Sequence[Mapping[str, Any]]
    scale: float = 1.0  # a value is divided by it
    span: tuple[float, float] | None = None  # of x; charts that stand together have the same
    x_scale: float = 1.0
    log: bool | None = None  # None: where it shows more
    from_zero: bool = False
    top: float | None = None  # of the axis at least, in units
    limits: Sequence[float] = ()  # lines across, shown where they are near the curve
    marks: Sequence[tuple[float, str]] = ()  # places of x, each with the name of a colour
    breaks: Sequence[float] = ()  # places of x where no curve goes on


def draw(drawings: Sequence[Drawing]) -> list[str]:
    """Each drawing as an `<svg>` to stand in a page, without any text from outside, id of a group, or fixed colour."""
    with plot_style():
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return [_draw(drawing) for drawing in drawings]


def is_log(drawing: Drawing) -> bool:
    """Whether a drawing's axis is logarithmic."""
    values = [c[key] for c in drawing.curves for key in ("least", "greatest") if c[key] is not None]
    if drawing.log is not None or not values:
        return bool(drawing.log)
    return min(values) > 0 and max(values) >= _LOG_FROM * min(values)


def _draw(drawing: Drawing) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
    FigureCanvasSVG(sheet)
    sheet.patch.set_visible(False)
    inner = (_LEFT / WIDTH, _BOTTOM / HEIGHT, 1 - (_LEFT + _RIGHT) / WIDTH, 1 - (_TOP + _BOTTOM) / HEIGHT)
    axes = sheet.add_axes(inner)
    axes.patch.set_visible(False)
    if is_log(drawing):
        axes.set_yscale("log")
    for one, colour in zip(drawing.curves, itertools.cycle(SERIES), strict=False):
        _draw_curve(axes, one, _COLOURS[colour], drawing)
    _set_limits(axes, drawing)
    _set_ticks(axes, is_log(drawing))
    for x, colour in drawing.marks:
        axes.axvline(x / drawing.x_scale, color=_COLOURS[colour], linewidth=1.0, alpha=0.6, zorder=1.5)
    for x in drawing.breaks:
        axes.axvline(x / drawing.x_scale, color=_COLOURS["faint"], linewidth=1.0, linestyle=(0, (1, 3)), zorder=1.5)
    for one in drawing.curves:
        if one["not_finite"]:
            axes.plot(
                [one["x"][i] / drawing.x_scale for i in one["broken"]], [0.04] * len(one["broken"]), "x",
                color=_COLOURS["bad"], markersize=5, markeredgewidth=1.4, clip_on=False,
                transform=axes.get_xaxis_transform(), zorder=4,
            )  # fmt: skip
    content = io.StringIO()
    # Of its own for each chart: clip paths of two charts on one page must not share an id.
    with matplotlib.rc_context({"svg.hashsalt": drawing.name}):
        sheet.savefig(content, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _for_page(content.getvalue())


def _draw_curve(axes: Axes, one: Mapping[str, Any], colour: str, drawing: Drawing) -> None:
    import numpy as np

    x = np.asarray(one["x"], np.float64) / drawing.x_scale
    least, greatest, mean = (
        np.asarray([np.nan if v is None else v for v in one[key]], np.float64) / drawing.scale
        for key in ("min", "max", "mean")
    )
    if not len(x):
        return
    line = mean.copy()
    line[one["broken"]] = np.nan
    for place in drawing.breaks:
        # Behind a break the line begins anew.
        after = int(np.searchsorted(x, place / drawing.x_scale + 1e-9))
        if 0 < after < len(x):
            x, line = np.insert(x, after, x[after - 1]), np.insert(line, after, np.nan)
            least, greatest = np.insert(least, after, np.nan), np.insert(greatest, after, np.nan)
    if one["points"] > len(one["x"]):
        axes.fill_between(x, least, greatest, color=colour, alpha=0.28, linewidth=0.8)
    alone = len(x) <= _MARKED_POINTS
    axes.plot(x, line, color=colour, linewidth=1.5, solid_joinstyle="round", solid_capstyle="round")
    shown = np.isfinite(line)
    lonely = shown & ~np.append(shown[1:], False) & ~np.insert(shown[:-1], 0, False)
    dots = shown if alone else lonely
    if dots.any():
        axes.plot(x[dots], line[dots], "o", color=colour, markersize=3.2, markeredgewidth=0)


def _set_limits(axes: Axes, drawing: Drawing) -> None:
    if drawing.span is not None:
        low, high = (place / drawing.x_scale for place in drawing.span)
        margin = 0.01 * (high - low) or 0.5
        axes.set_xlim(low - margin, high + margin)
    values = [c[key] / drawing.scale for c in drawing.curves for key in ("least", "greatest") if c[key] is not None]
    if not values:
        axes.set_ylim(0, 1)
        return
    low, high = min(values), max(values)
    limits = [limit / drawing.scale for limit in drawing.limits]
    log = is_log(drawing)
    if drawing.from_zero and not log:
        low = min(0.0, low)
        high = max([high, drawing.top or 0.0, *(one for one in limits if one <= _LIMIT_IN_VIEW * high)])
    if log:
        axes.set_ylim(low / (high / low) ** 0.06, high * (high / low) ** 0.08)
    elif high > low:
        axes.set_ylim(low - (0 if drawing.from_zero else 0.06 * (high - low)), high + 0.08 * (high - low))
    else:
        spread = abs(high) / 2 or 0.5
        axes.set_ylim(0 if drawing.from_zero else low - spread, high + spread)
    bottom, top = axes.get_ylim()
    for limit in limits:
        if bottom < limit < top:
            axes.axhline(limit, color=_COLOURS["warn"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1.8)


def _set_ticks(axes: Axes, log: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=2, steps=_ROUND))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    locator = LogLocator(numticks=5) if log else MaxNLocator(4, min_n_ticks=2, steps=_ROUND)
    ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    labels = tick_labels(ticks)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda _, place: labels[place] if place is not None else ""))


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels that tell neighbouring ticks apart, and are no longer than that takes."""
    sizes = [abs(tick) for tick in ticks if tick]
    if not sizes:
        return ["0" for _ in ticks]
    if max(sizes) >= 1e5 or max(sizes) < 1e-3 or min(sizes) < 1e-5:
        digits = max(_digits(tick) for tick in ticks)
        return [_exponential(tick, digits - 1) for tick in ticks]
    decimals = [max(0, _digits(tick) - 1 - math.floor(math.log10(abs(tick)))) if tick else 0 for tick in ticks]
    # Of one length where they are near each other; over decades each as short as it can be.
    alike = max(decimals) if max(sizes) <= 20 * min(sizes) else None
    return [
        f"{tick:,.{own if alike is None else alike}f}".replace("-", "−") if tick else "0"
        for tick, own in zip(ticks, decimals, strict=True)
    ]


def _digits(tick: float) -> int:
    """How many digits say it exactly, but for its rounding."""
    return next((n for n in range(1, 12) if math.isclose(float(f"{tick:.{n - 1}e}"), tick, rel_tol=1e-9)), 12)


def _exponential(tick: float, decimals: int) -> str:
    mantissa, _, exponent = f"{tick:.{decimals}e}".partition("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−") if tick else "0"


def _short(value: float) -> str:
    """A place on the horizontal axis: 20,000 steps are 20k."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


_TAG = re.compile(r"<[^>]*>")
_ID = re.compile(r'<g id="[^"]*"')
_FONT = re.compile(r"font: ([\d.]+px) [^;\"]*|font-family: [^;\"]*;?\s*")
_PLACE = re.compile(r"(?<![\w#.])(-?\d+\.\d{2})\d+")


def _for_page(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true" focusable="false">', svg)
    svg = _ID.sub("<g", svg)
    svg = _FONT.sub(lambda found: f"font-size: {found[1]}" if found[1] else "", svg)
    # Places within a hundredth of a pixel; in tags alone, since the labels between them are numbers, too.
    svg = _TAG.sub(lambda found: _PLACE.sub(r"\1", found[0]), svg)
    for name, number in _COLOURS.items():
        svg = svg.replace(number, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
