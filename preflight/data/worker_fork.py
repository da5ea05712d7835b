"""Loader workers that are forks of the process that loads: they need no copy of the dataset, where a fork is safe."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Literal

from preflight.data.worker import serve_batches

StartMethod = Literal["forkserver", "fork"]


def fork_hazard() -> str | None:
    """Why this process must not be forked now; None where nothing is known against it.

    A fork has the locks of all threads and none of the threads that would let go of them.
    """
    if not hasattr(os, "fork") or sys.platform == "darwin":
        return "this system's libraries do not stand a fork"
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and getattr(bridge, "_backends", None):
        return "JAX has started, and its threads hold locks"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA has started, and cannot be used in a fork"
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    return f"other threads run: {', '.join(others)}" if others else None


def serve_forked(inherited: Sequence[Connection], *arguments: Any) -> None:
    """`serve_batches` in a fork.

    Args:
        inherited: The parent's ends of pipes. While a worker holds one, nobody reads that it was closed.
        arguments: Of `serve_batches`.
    """
    for end in inherited:
        end.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler is about the parent
    serve_batches(*arguments)
