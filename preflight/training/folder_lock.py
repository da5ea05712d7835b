"""One process trains in a run's folder at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from preflight.errors import UsageError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run's folder; the system lets go of it when the process ends, however it does.

    A folder that is not there is not held, and neither is one on a file system without locks.

    Raises:
        UsageError: Another process trains in it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is training in {folder}",
                "wait until it has saved and ended, or choose another --exp-name",
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
