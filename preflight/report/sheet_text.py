"""Text in a picture: whatever a prompt or a path holds, within a width."""

from __future__ import annotations

import functools
import unicodedata

from PIL import ImageFont

from preflight.report.plain import printable

# Pillow's own font has little beyond ASCII. What it lacks, one of these may have where it is installed; Pillow looks
# for the names in the system's font folders.
_MORE_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "Arial Unicode.ttf")
_IN_NO_FONT = "\U0010ffff"
_REPLACEMENT = "\ufffd"  # a crossed box in Pillow's own font, too
_MOST = 1000  # characters of one text that are looked at; no panel holds more

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def wrapped(text: str, size: int, width: int, most: int) -> tuple[Font, list[str]]:
    """A text in lines, with the font to draw them in.

    A letter that no font here has becomes its letter without accents, or else a box.

    Args:
        text: Any; what a terminal would act on is made visible.
        size: Of the font, in pixels.
        width: Pixels that a line may take.
        most: Lines; what is beyond them is cut, and an ellipsis says so.
    """
    text = printable(text[:_MOST])
    font, text = _in_a_font(text, size)
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        if len(lines) > most:
            break
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while len(line) > 1 and len(lines) <= most and font.getlength(line) > width:
            fitting = _fitting(font, line, width)
            lines.append(line[:fitting])
            line = line[fitting:]
    lines.append(line)
    if len(lines) > most:
        cut = lines[most - 1]
        while cut and font.getlength(f"{cut}...") > width:
            cut = cut[:-1]
        lines = [*lines[: most - 1], f"{cut.rstrip()}..."]
    return font, lines


def _fitting(font: Font, line: str, width: int) -> int:
    """How many of the first characters go into a width; at least one."""
    low, high = 1, len(line)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(line[:middle]) <= width else (low, middle - 1)
    return low


def _in_a_font(text: str, size: int) -> tuple[Font, str]:
    """The first font that has all of a text, else the one that lacks least of it, with a replacement for the rest."""
    if text.isascii():
        return _own_font(size), text
    lacking = {font: sum(not _has(font, character) for character in text) for font in _fonts(size)}
    font = min(lacking, key=lambda font: lacking[font])
    return font, "".join(c if _has(font, c) else _plainer(font, c) for c in text) if lacking[font] else text


def _plainer(font: Font, character: str) -> str:
    parts = (part for part in unicodedata.normalize("NFKD", character) if not unicodedata.combining(part))
    plainer = "".join(part for part in parts if _has(font, part))
    return plainer or _REPLACEMENT


@functools.cache
def _own_font(size: int) -> Font:
    return ImageFont.load_default(size=size)


@functools.cache
def _fonts(size: int) -> tuple[Font, ...]:
    fonts = [_own_font(size)]
    for name in _MORE_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(fonts)


@functools.cache
def _has(font: Font, character: str) -> bool:
    """Whether a font draws something of its own for a character, and not its sign for what it lacks."""
    return character.isascii() or _drawn(font, character) != _drawn(font, _IN_NO_FONT)


def _drawn(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)
