"""Arrays that loader workers map instead of copying: one copy of the dataset's columns, however many workers."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from preflight.errors import PreflightError


class SharedArray:
    """A numpy array in anonymous shared memory; pickling sends its address, not its content.

    A receiver on the same machine maps the memory through /proc while the sender lives. Where the system has no memfd
    (macOS) the content is pickled.

    Args:
        shape: The array's shape.
        dtype: The array's dtype.
        writable: Whether receivers may write into it, too.

    Attributes:
        array: The array; zeros at first, read-only where it was received unless it is `writable`.

    Raises:
        OSError: if the system gives no memory or no descriptor.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, *, writable: bool = False) -> None:
        self._fd: int | None = None
        self._path: Path | None = None  # of a file that is mapped
        self._writable = writable
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("preflight-column", os.MFD_CLOEXEC)
            os.truncate(self._fd, max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize))
            self.array = _mapped(self._fd, shape, np.dtype(dtype), mmap.PROT_READ | mmap.PROT_WRITE)
        else:
            self.array = np.zeros(shape, dtype)

    @classmethod
    def of_file(cls, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> SharedArray:
        """Maps a file, read-only; receivers map the very same one, be it replaced or deleted meanwhile.

        Args:
            path: The file; at least as long as the array.
            shape: The array's shape.
            dtype: The array's dtype.

        Raises:
            OSError: if it cannot be opened or mapped.
        """
        shared = cls.__new__(cls)
        shared._fd, shared._writable, shared._path = None, False, path
        shared._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        shared.array = _mapped(shared._fd, shape, np.dtype(dtype), mmap.PROT_READ)
        return shared

    def unmap_pages(self) -> None:
        """Takes what this process has seen of the array out of its own page table; the memory or file stays as it is.

        Pages that a process touches count as its own (RSS, PSS) until then.
        """
        # On anonymous private memory, which a copied array would be, it would throw the content away.
        if (memory := self._mapping()) is not None and hasattr(mmap, "MADV_DONTNEED"):
            memory.madvise(mmap.MADV_DONTNEED)

    def read_ahead(self, index: int) -> None:
        """Has the system read `array[index]` of a mapped file in one go, and not page by page as it is touched."""
        if self._path is None or (memory := self._mapping()) is None or not hasattr(mmap, "MADV_WILLNEED"):
            return
        size = self.array[0].nbytes
        start = index * size // mmap.PAGESIZE * mmap.PAGESIZE
        memory.madvise(mmap.MADV_WILLNEED, start, (index + 1) * size - start)

    def _mapping(self) -> mmap.mmap | None:
        """The memory that the array lies in; None where that is the process's own."""
        memory: object = self.array if self._fd is not None else None
        while isinstance(memory, np.ndarray):
            memory = memory.base
        if isinstance(memory, memoryview):
            memory = memory.obj
        return memory if isinstance(memory, mmap.mmap) else None

    def __reduce__(self) -> tuple:
        if self._path is not None and not hasattr(os, "memfd_create"):
            return SharedArray.of_file, (self._path, self.array.shape, self.array.dtype)
        if self._fd is None:
            return _from_content, (self.array,)
        inode = os.fstat(self._fd).st_ino
        layout = self.array.shape, self.array.dtype
        return _from_address, (os.getpid(), self._fd, inode, *layout, self._writable, self._path)

    # Bound early: when the interpreter ends, the module's names may be gone before the array is.
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._fd is not None:
            # The mapping outlives the descriptor, and goes with the last view of the array.
            close(self._fd)
            self._fd = None


def _mapped(fd: int, shape: tuple[int, ...], dtype: np.dtype, protection: int) -> np.ndarray:
    memory = mmap.mmap(fd, os.fstat(fd).st_size, flags=mmap.MAP_SHARED, prot=protection)
    return np.frombuffer(memory, dtype=dtype, count=int(np.prod(shape))).reshape(shape)


def _from_address(
    pid: int, fd: int, inode: int, shape: tuple[int, ...], dtype: np.dtype, writable: bool, path: Path | None
) -> SharedArray:
    shared = SharedArray.__new__(SharedArray)
    shared._fd, shared._writable, shared._path = None, writable, path
    try:
        own = os.open(f"/proc/{pid}/fd/{fd}", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        raise PreflightError(
            f"the dataset's columns cannot be mapped from process {pid} ({error.strerror})",
            "A pickled dataset can be read only while the process that pickled it lives, on the same machine.",
        ) from error
    shared._fd = own
    if os.fstat(own).st_ino != inode:
        raise PreflightError(f"the dataset's columns are gone from process {pid}")
    shared.array = _mapped(own, shape, dtype, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
    return shared


def _from_content(array: np.ndarray) -> SharedArray:
    shared = SharedArray(array.shape, array.dtype)
    shared.array[...] = array
    return shared
