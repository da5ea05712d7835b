"""One line at the foot of a terminal that says what is going on and leaves no trace."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class StatusLine:
    """A line that is overwritten in place; does nothing on a stream that is no terminal. Any thread may show a text.

    Args:
        stream: Usually stderr, so that what is piped from stdout stays clean.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._alive = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._text = ""
        self._lock = threading.RLock()

    def show(self, text: str) -> None:
        """Replace the line."""
        with self._lock:
            self._text = text
            if self._alive:
                self._stream.write(f"\r\x1b[2K{self._fit(text)}")
                self._stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        with self._lock:
            self._text = ""
            self._wipe()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the line away while something is printed, then bring it back."""
        with self._lock:
            self._wipe()
            yield
            if self._text:
                self.show(self._text)

    def _wipe(self) -> None:
        if self._alive:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def _fit(self, text: str) -> str:
        # A line that wraps can no longer be wiped; the last column is left free, since some terminals wrap on it.
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            columns = 80
        return text[: columns - 1]
