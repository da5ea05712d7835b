"""How much of a dataset lies in the kernel's page cache, and how to take it out of there for a cold measurement."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# cachestat(2), Linux 6.5; system calls as new as this have one number on all architectures but alpha.
_CACHESTAT = 451
# What a loader reads over and over; meta/ is read once, when the dataset is opened.
_FOLDERS = ("data", "videos", "images")
# Looking at a file takes some 20 us. Of more files than this, as many are picked evenly.
_LOOKED_AT = 2000


@dataclass(frozen=True, kw_only=True)
class PageCache:
    """What a measurement found in the page cache, and did about it."""

    resident_share: float | None  # of the files' bytes, before the first point; None: not to be had here
    bytes: int  # of the files
    cold: bool  # whether the files were dropped before each slice
    left_share: float | None = None  # cold: what was still there after dropping, at most

    def to_json(self) -> dict[str, Any]:
        """As ``page_cache``."""
        return {
            "resident_share": self.resident_share,
            "bytes": self.bytes,
            "cold": self.cold,
            "left_share": self.left_share,
        }


def dataset_files(folder: Path) -> tuple[Path, ...]:
    """The files of a LeRobot dataset that its samples are read from, in order of their names.

    Args:
        folder: The dataset's.
    """
    found: list[Path] = []
    for name in _FOLDERS:
        for place, folders, files in os.walk(folder / name):
            folders.sort()
            found += [Path(place, file) for file in sorted(files)]
    return tuple(found)


def total_bytes(files: Iterable[Path]) -> int:
    """Size of the files in bytes; those that are not there count nothing."""
    sizes = []
    for path in files:
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue
    return sum(sizes)


def resident_share(files: Sequence[Path]) -> float | None:
    """Share of the files' pages that lie in memory; asking for it brings none in.

    Args:
        files: Any; a long list is looked at in part, evenly.

    Returns:
        0 to 1. None where the kernel does not say: there are no pages, it is not Linux, or the files are somebody
        else's, of whose pages mincore(2) reports every one as resident.
    """
    if not sys.platform.startswith("linux"):
        return None
    resident = pages = 0
    for path in files[:: -(-len(files) // _LOOKED_AT) or 1]:
        counted = _pages(path)
        if counted is not None:
            resident += counted[0]
            pages += counted[1]
    return min(1.0, resident / pages) if pages else None


def drop(files: Iterable[Path]) -> None:
    """Takes the files' pages out of the page cache, written back first; what cannot be dropped stays.

    Pages that another process has mapped stay, and so do all of a file system that lives in memory. A network file
    system's server keeps its own.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            os.fdatasync(descriptor)  # dirty pages are not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            continue
        finally:
            os.close(descriptor)


class _Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


def _pages(path: Path) -> tuple[int, int] | None:
    """Resident pages and all pages of a file; None where they cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        size = os.fstat(descriptor).st_size
        pages = -(-size // mmap.PAGESIZE)
        if not pages:
            return None
        resident = _cachestat(descriptor)
        if resident is None:
            resident = _mincore(path, descriptor, size)
        return None if resident is None else (resident, pages)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def _cachestat(descriptor: int) -> int | None:
    found = (ctypes.c_uint64 * 5)()  # nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted
    everything = _Range(0, 0)
    failed = ctypes.CDLL(None).syscall(_CACHESTAT, descriptor, ctypes.byref(everything), found, 0)
    return None if failed else int(found[0])


def _mincore(path: Path, descriptor: int, size: int) -> int | None:
    # Since Linux 5.2 it tells the truth only to those who own the file or may write to it (mm/mincore.c).
    if os.fstat(descriptor).st_uid != os.geteuid() and not os.access(path, os.W_OK):
        return None
    import numpy as np

    with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        vector = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(vector.ctypes.data)
        )
        del view  # a mapping that is looked at cannot be closed
        return None if failed else int((vector & 1).sum())
