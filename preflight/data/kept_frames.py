"""Frames that were decoded before, as the model sees them, in memory that all loader workers share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from preflight.config.schema import IMAGE_SIZE
from preflight.data.shared_array import SharedArray

FRAME_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)
FRAME_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3

# Pages of kept frames that a process may hold in its page table before it lets go of all. Otherwise a worker's RSS and
# PSS would grow to the size of the cache, of which nothing is its own.
_MAPPED_BYTES = 32 << 20

Square = UInt8[np.ndarray, "size size 3"]


class KeptFrames:
    """One camera's frames. Small when pickled; what it gives are read-only views.

    Args:
        frames: uint8[n, size, size, 3]; writable where frames are added as they are decoded.
        have: uint8[n], 1 where the frame is in `frames`; likewise.
        fill: Whether frames that are not there yet are added.
    """

    def __init__(self, frames: SharedArray, have: SharedArray, *, fill: bool) -> None:
        self._frames = frames
        self._have = have
        self._fill = fill
        self._mapped = 0  # bytes of views that were given since the pages were let go

    @classmethod
    def in_memory(cls, frames: int) -> KeptFrames:
        """An empty one of so many frames, which takes memory as it is filled.

        Raises:
            OSError: if the system gives none.
        """
        kind = np.dtype(np.uint8)
        pixels = SharedArray((frames, *FRAME_SHAPE), kind, writable=True)
        return cls(pixels, SharedArray((frames,), kind, writable=True), fill=True)

    def squares(self, indices: Sequence[int], decode: Callable[[list[int]], list[Square]]) -> list[Square]:
        """Gives frames, decoding those that are not kept.

        Args:
            indices: The frames, in any order.
            decode: Gives frames as the model sees them.

        Returns:
            The frames in the order asked.
        """
        gone = [index for index in dict.fromkeys(indices) if not self._have.array[index]]
        _in_order()
        decoded = dict(zip(gone, decode(gone), strict=True)) if gone else {}
        if self._fill:
            for index, square in decoded.items():
                self._keep(index, square)
        self._let_go(len(indices))
        for index in indices:
            self._frames.read_ahead(index)
        return [decoded[index] if index in decoded else self._view(index) for index in indices]

    def _keep(self, index: int, square: Square) -> None:
        # Two workers may do so at once: with the same bytes.
        self._frames.array[index] = square
        _in_order()
        self._have.array[index] = 1

    def _view(self, index: int) -> Square:
        view = self._frames.array[index]
        view.flags.writeable = False
        return view

    def _let_go(self, count: int) -> None:
        self._mapped += count * FRAME_BYTES
        if self._mapped > _MAPPED_BYTES:
            self._frames.unmap_pages()
            self._mapped = count * FRAME_BYTES

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": 0}


_order = threading.Lock()


def _in_order() -> None:
    """No memory access passes this point: where a worker sees that a frame is there, it sees the frame.

    Not all CPUs keep the order of two writes. Letting go of a lock and taking it again keeps what is before the first
    from what is after the second.
    """
    for _ in range(2):
        with _order:
            pass
