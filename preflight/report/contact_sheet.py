"""The contact sheet: samples as the model receives them, one a row, for a person to look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from preflight.report.sheet_text import Font, wrapped

Tone = Literal["plain", "faint", "alarm"]
Line = tuple[str, Tone]

_MARGIN, _GAP = 20, 12
_SIDE = 224  # of a picture's place, where all are missing
_PANEL = 520  # width of the text beside the pictures
_CHART = 64  # least height of the chart
_MOST_CHART = 110
_TITLE, _TEXT, _SMALL = 24, 15, 13  # sizes of the font
_LINES = 3  # of a piece of text in a panel, at most
_LEADING = 1.35  # a line's height to its font's size
_FINER = 3  # the chart is drawn so many times larger, and then made small, for smooth lines

_PAPER, _INK, _FAINT, _RULE = "#ffffff", "#1b1f24", "#667079", "#c9ced4"
_MASKED, _PLOT, _BAND, _CURVE = "#e3e6e9", "#f3f4f6", "#d5ead5", "#2f6f9f"
_ALARM, _ALARM_PAPER = "#b3261e", "#fbe3e1"
_COLOURS: dict[Tone, str] = {"plain": _INK, "faint": _FAINT, "alarm": _ALARM}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One sample."""

    title: str  # which one it is
    lines: tuple[Line, ...] = ()  # what is to be said of it
    pictures: Mapping[str, UInt8[np.ndarray, "h w 3"] | str]  # by column; a text stands in a picture's place
    actions: Float[np.ndarray, "h d"] | None = None  # normalised
    failure: str | None = None  # why there is no sample; then there are no pictures
    starts_group: bool = True  # whether a rule parts it from the row above


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContactSheet:
    """What is drawn."""

    title: str
    lines: tuple[Line, ...]  # below the title
    columns: Mapping[str, str]  # the pictures' names, in their order, with a caption each
    rows: tuple[Row, ...]


def draw_contact_sheet(sheet: ContactSheet) -> Image.Image:
    """Draws a sheet: pictures pixel by pixel as they are given, text and a chart of the actions beside them."""
    height, width = _largest(sheet)
    pictures = len(sheet.columns) * (width + _GAP)
    panel = _MARGIN + pictures + _GAP
    total = panel + _PANEL + _MARGIN
    limit = _chart_limit(sheet)
    # What stands in a panel decides how high its row is.
    texts = [_laid_out([(row.title, "plain"), *row.lines], _PANEL) for row in sheet.rows]
    charts = [_CHART if row.actions is not None else 0 for row in sheet.rows]
    heights = [max(height, text.height + chart) for text, chart in zip(texts, charts, strict=True)]
    head = _laid_out(list(sheet.lines), total - 2 * _MARGIN)
    captions = [_laid_out([(name, "plain"), (text, "faint")], width) for name, text in sheet.columns.items()]
    top = _MARGIN + round(_TITLE * 1.6) + head.height + _GAP + max((c.height for c in captions), default=0)
    canvas = Image.new("RGB", (total, top + sum(heights) + 2 * _GAP * len(heights) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(canvas)

    font, title = wrapped(sheet.title, _TITLE, total - 2 * _MARGIN, 1)
    draw.text((_MARGIN, _MARGIN), title[0], font=font, fill=_INK)
    head.draw(draw, _MARGIN, _MARGIN + round(_TITLE * 1.6))
    for column, caption in enumerate(captions):
        caption.draw(draw, _MARGIN + column * (width + _GAP), top - caption.height)
    y = top
    for row, text, row_height in zip(sheet.rows, texts, heights, strict=True):
        if row.starts_group:
            draw.line((_MARGIN, y + _GAP // 2, total - _MARGIN, y + _GAP // 2), fill=_RULE, width=2)
        y += _GAP
        if row.failure is not None:
            _box(draw, (_MARGIN, y, _MARGIN + pictures - _GAP, y + height), row.failure, _ALARM, _ALARM_PAPER)
        else:
            for column, name in enumerate(sheet.columns):
                _place(canvas, row.pictures.get(name, "none"), _MARGIN + column * (width + _GAP), y, (width, height))
        text.draw(draw, panel, y)
        if row.actions is not None:
            chart_height = min(row_height - text.height, _MOST_CHART)
            canvas.paste(_chart(row.actions, limit, _PANEL, chart_height), (panel, y + row_height - chart_height))
        y += row_height + _GAP
    return canvas


@dataclasses.dataclass(frozen=True)
class _Text:
    lines: tuple[tuple[str, Font, int, str], ...]  # text, font, size, colour

    @property
    def height(self) -> int:
        return sum(round(size * _LEADING) for _, _, size, _ in self.lines)

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
        for text, font, size, colour in self.lines:
            draw.text((x, y), text, font=font, fill=colour)
            y += round(size * _LEADING)


def _laid_out(lines: list[Line], width: int) -> _Text:
    laid: list[tuple[str, Font, int, str]] = []
    for text, tone in lines:
        size = _SMALL if tone == "faint" else _TEXT
        font, pieces = wrapped(text, size, width, _LINES)
        laid += [(piece, font, size, _COLOURS[tone]) for piece in pieces]
    return _Text(tuple(laid))


def _largest(sheet: ContactSheet) -> tuple[int, int]:
    shapes = [p.shape for row in sheet.rows for p in row.pictures.values() if not isinstance(p, str)]
    return max((s[0] for s in shapes), default=_SIDE), max((s[1] for s in shapes), default=_SIDE)


def _place(canvas: Image.Image, picture: np.ndarray | str, x: int, y: int, size: tuple[int, int]) -> None:
    draw = ImageDraw.Draw(canvas)
    if isinstance(picture, str):
        _box(draw, (x, y, x + size[0], y + size[1]), picture, _FAINT, _MASKED)
        return
    height, width = picture.shape[:2]
    # Outside of the picture, so that its own edge is seen where it is white.
    draw.rectangle((x - 1, y - 1, x + width, y + height), outline=_RULE)
    canvas.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, y))


def _box(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], text: str, ink: str, paper: str) -> None:
    """A box with a text in its middle."""
    left, top, right, bottom = box
    draw.rectangle((left, top, right - 1, bottom - 1), fill=paper, outline=ink if ink == _ALARM else None, width=2)
    step = round(_TEXT * _LEADING)
    font, lines = wrapped(text, _TEXT, right - left - 2 * _GAP, max((bottom - top) // step - 1, 1))
    y = (top + bottom - step * len(lines)) // 2
    for line in lines:
        draw.text(((left + right) // 2, y), line, font=font, fill=ink, anchor="ma")
        y += step


def _chart_limit(sheet: ContactSheet) -> float:
    """The value at the chart's edges, one for all rows; what goes further is drawn along the edge, as an alarm."""
    finite = [row.actions[np.isfinite(row.actions)] for row in sheet.rows if row.actions is not None]
    return float(np.clip(max((np.abs(values).max() for values in finite if values.size), default=1.0), 1.5, 5.0))


def _chart(actions: np.ndarray, limit: float, width: int, height: int) -> Image.Image:
    """A curve for each dimension over the chunk's steps; the band is -1 to 1."""
    size = _SMALL - 2
    top, left = round(size * _LEADING) + 6, 34
    inner = (width - left) * _FINER, (height - top) * _FINER

    def at(value: np.ndarray | float) -> np.ndarray:
        return (1 - np.clip(value, -limit, limit) / limit) / 2 * (inner[1] - 1)

    plot = Image.new("RGB", inner, _PLOT)
    draw = ImageDraw.Draw(plot)
    draw.rectangle((0, float(at(1.0)), inner[0], float(at(-1.0))), fill=_BAND)
    draw.line((0, float(at(0.0)), inner[0], float(at(0.0))), fill=_RULE, width=2)
    x = np.linspace(0, inner[0] - 1, max(len(actions), 2))
    for values in np.repeat(actions, 2, axis=0).T if len(actions) == 1 else actions.T:
        beyond = not (np.abs(values) <= limit).all()
        points = list(zip(x.tolist(), at(np.nan_to_num(values, nan=limit)).tolist(), strict=True))
        draw.line(points, fill=_ALARM if beyond else _CURVE, width=_FINER + (1 if beyond else 0))
    chart = Image.new("RGB", (width, height), _PAPER)
    chart.paste(plot.resize((width - left, height - top), Image.Resampling.LANCZOS), (left, top))
    labels = ImageDraw.Draw(chart)
    font, (text,) = wrapped(f"actions over {len(actions)} steps, a line a dimension; band: -1 to 1", size, width, 1)
    labels.text((left, 4), text, font=font, fill=_FAINT)
    for value in (limit, 0.0, -limit):
        y = top + float(at(value)) / _FINER
        anchor = {limit: "rt", 0.0: "rm", -limit: "rb"}[value]
        labels.text((left - 5, y), f"{value:.1f}", font=font, fill=_FAINT, anchor=anchor)
    return chart
