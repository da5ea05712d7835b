"""A stdout that may break without changing the verdict."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any


class LenientStdout:
    """Stands before stdout; what cannot be written is dropped.

    `preflight check | head` has a reader that has enough, and Ctrl-C ends the `tee` of `preflight train | tee log`
    before the run has saved its checkpoint: neither may end the process, or change its exit code.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: OSError | None = None  # why output was dropped, unless its reader simply went away

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, or drops."""
        return self._try(lambda: self._stream.write(text)) or len(text)

    def flush(self) -> None:
        """Flushes, or drops."""
        self._try(self._stream.flush)

    def _try(self, action: Any) -> Any:
        try:
            return action()
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.lost = error
            # What is still buffered, and whatever follows, goes where it can be written.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            return None


def open_stdout() -> LenientStdout:
    """The process's stdout, made lenient; a closed one (`>&-`) becomes the null device."""
    return LenientStdout(sys.stdout or open(os.devnull, "w", encoding="utf-8"))
