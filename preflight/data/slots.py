"""Shared memory that batches lie in, used again as soon as nobody looks at the batch any more.

A block of memory made anew for each batch costs a page fault for every 4 KiB on both sides, several times what copying
the samples costs. A slot is mapped once by each process. It is anonymous memory (memfd): not bound by the size of
/dev/shm, counted by the memory limit of a container, and gone with its processes however they die.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np

from preflight.data.shared_array import SharedArray

_PAGE = 4096
# When batches turn out larger than the slots are, the new ones get some room, since the next may be larger still.
_ROOM = 1.25


@dataclass(frozen=True)
class Slot:
    """The memory of one batch."""

    number: int  # never used twice
    memory: SharedArray  # uint8[size], writable by workers


class Slots:
    """The slots of a loader.

    Args:
        most: Slots that may exist at once.

    Attributes:
        refusal: Why the system gives no (more) shared memory; None while it does.
    """

    def __init__(self, most: int) -> None:
        self.refusal: str | None = None
        self._most = most
        self._size = 0  # bytes that a slot has at least; 0: no batch has been seen
        self._alive: set[int] = set()
        # Appended to when an array is deleted, which may be in any thread and in the middle of anything: no lock.
        self._free: deque[Slot] = deque()
        self._made = 0

    @property
    def alive(self) -> frozenset[int]:
        """Numbers of the slots that exist."""
        return frozenset(self._alive)

    def learn(self, size: int) -> None:
        """Tells how large a batch was, in bytes; slots have that size from now on."""
        if size > self._size:
            wanted = size if not self._size else max(size, int(self._size * _ROOM))
            self._size = max(_PAGE, -(-wanted // _PAGE) * _PAGE)

    def take(self) -> Slot | None:
        """A slot that nobody uses; None where all are in use, no batch has been seen yet or there is no memory."""
        if not self._size:
            return None
        while self._free:
            slot = self._free.pop()  # the last one used: what of it is in the CPU's cache is overwritten in place
            if slot.memory.array.size >= self._size:
                return slot
            self._alive.discard(slot.number)
        if len(self._alive) >= self._most or self.refusal is not None:
            return None
        if not hasattr(os, "memfd_create"):
            self.refusal = "this system has no memfd"
            return None
        try:
            slot = Slot(self._made, SharedArray((self._size,), np.dtype(np.uint8), writable=True))
        except OSError as error:
            self.refusal = error.strerror or str(error)
            return None
        self._made += 1
        self._alive.add(slot.number)
        return slot

    def give_back(self, slot: Slot) -> None:
        """Lets the next batch have a slot; for one that was taken in vain."""
        self._free.append(slot)

    def lend(self, slot: Slot) -> np.ndarray:
        """The slot's memory, uint8[size]; the slot is given back when the last view of this array is gone."""
        # A memory view in between: numpy would have views of `array` refer to the mapping, past what is watched here.
        lent = np.frombuffer(slot.memory.array.data, np.uint8)
        weakref.finalize(lent, self._free.append, slot).atexit = False
        return lent
