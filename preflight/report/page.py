"""Lines of text within a width, on a terminal or in a file: the typography of the text report."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from preflight.report.plain import printable

if TYPE_CHECKING:
    from rich.text import Text

_MAX_WIDTH = 120  # longer lines are hard to read, however wide the terminal
_FILE_WIDTH = 100  # where the output is no terminal
_NARROWEST = 10  # text that is left fewer columns than this runs over the edge instead


class Page:
    """Prints lines; all text given to it is shown as it is, never read as markup.

    Colours are for terminals only, and `NO_COLOR` turns them off there (`FORCE_COLOR` turns them on elsewhere). On a
    stream that cannot encode a character, its escape stands for it.

    Args:
        stream: Where to print.
        width: Columns; by default the terminal's, at most 120, and 100 where there is none.
        colour: Whether to use colours; by default as said above.
    """

    def __init__(self, stream: TextIO, *, width: int | None = None, colour: bool | None = None) -> None:
        from rich.console import Console

        colour = _wants_colour(stream) if colour is None else colour
        self.stream = stream
        self.width = width or _width_of(stream)
        # NO_COLOR is settled above; left to rich, bold and dim would remain.
        self._console = Console(
            file=stream,
            width=self.width,
            force_terminal=colour,
            color_system="auto" if colour else None,
            no_color=False,
            legacy_windows=False,
        )

    def text(self, text: str, style: str = "") -> "Text":
        """A piece of text, cleaned of what the terminal would act on or the stream could not encode."""
        from rich.text import Text

        # As a span and not as the base style, which would spread to whatever is added behind it.
        return Text().append(self._clean(text), style=style)

    def line(self, line: "Text | str", style: str = "") -> None:
        """Print one line, however long."""
        line = self.text(line, style) if isinstance(line, str) else line
        line.rstrip()
        self._console.print(line, soft_wrap=True, crop=False, no_wrap=True, overflow="ignore")

    def wrapped(self, prefix: "Text", text: "Text", *, repeat: bool = False) -> None:
        """Print the text within the width, its later lines under its first; `repeat` repeats the prefix instead."""
        room = max(self.width - prefix.cell_len, _NARROWEST)
        for line in text.wrap(self._console, room) or [self.text("")]:
            self.line(prefix + line)
            prefix = prefix if repeat else self.text(" " * prefix.cell_len)

    def rows(self, rows: Iterable[tuple[str, str]]) -> None:
        """Print labels in one column and their texts in the next."""
        rows = list(rows)
        column = max((len(label) for label, _ in rows), default=0)
        for label, text in rows:
            self.wrapped(self.text(f"  {label.ljust(column)}  ", "dim"), self.text(text))

    def encodable(self, wanted: str, otherwise: str) -> str:
        """The first where the stream can encode it, else the second."""
        return wanted if self._clean(wanted) == wanted else otherwise

    def flush(self) -> None:
        """Make sure that it is seen."""
        self.stream.flush()

    def _clean(self, text: str) -> str:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def _wants_colour(stream: TextIO) -> bool:
    if os.environ.get("NO_COLOR"):  # https://no-color.org: set and not empty
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _width_of(stream: TextIO) -> int:
    if not stream.isatty():
        return _FILE_WIDTH
    try:
        return min(os.get_terminal_size(stream.fileno()).columns or _FILE_WIDTH, _MAX_WIDTH)
    except OSError:
        return _FILE_WIDTH
