"""How many files a process has open, and how many it may."""

from __future__ import annotations

import os
from pathlib import Path


def open_descriptors(pid: int | None = None, *, proc: Path = Path("/proc")) -> int | None:
    """Descriptors that a process has open now; None where nobody may know or it is gone.

    Args:
        pid: By default this process.
        proc: Where procfs is mounted.
    """
    try:
        # Listing the own folder opens one more.
        return len(os.listdir(proc / str(pid or "self") / "fd")) - (pid is None)
    except OSError:
        return None


def descriptor_limit() -> int | None:
    """The soft RLIMIT_NOFILE of this process, which its children inherit; None where there is no limit."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
