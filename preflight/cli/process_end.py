"""The end of the process, with all that it has started."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import NoReturn

# How long a clean-up at the end may take where the main thread is stuck in something.
_CLEANUP_S = 1.0


def end_process(code: int) -> NoReturn:
    """Ends the process, with the processes that it started.

    Where threads or processes were started, they are not waited for: a check that was given up on, or wandb's service
    without a network, would keep the process for ever. All that is to be kept has been written by now.

    May be called from any thread.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and sys.modules.keys().isdisjoint({"multiprocessing.forkserver", "wandb", "jax"}):
        sys.exit(code)
    with suppress(ValueError):  # another thread has no say in signals
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    import psutil

    if in_main:
        _finalize()
    else:
        cleanup = threading.Thread(target=_finalize, daemon=True)
        cleanup.start()
        cleanup.join(_CLEANUP_S)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    with suppress(OSError, AttributeError):
        sys.stderr.flush()
    os._exit(code)


def _finalize() -> None:
    """The worker server and its socket's folder; what the interpreter would do at its end."""
    with suppress(Exception):
        from multiprocessing import util

        util._run_finalizers()  # type: ignore[attr-defined]
