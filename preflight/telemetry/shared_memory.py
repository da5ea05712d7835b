"""How much room there is where processes share memory by name, which containers keep small (Docker: 64 MiB)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SharedMemory:
    """The file system that `shm_open` uses; torch's loader workers lay their batches there."""

    free_bytes: int  # what this user can still take
    total_bytes: int  # 0: without a limit of its own
    folder: Path


def shared_memory(folder: Path = Path("/dev/shm")) -> SharedMemory | None:
    """What is free there; None where the system has no such folder.

    Args:
        folder: shm_overview(7): glibc keeps POSIX shared memory in /dev/shm.
    """
    try:
        stat = os.statvfs(folder)
    except OSError:
        return None
    return SharedMemory(stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize, folder)
