"""Datasets that time themselves inside a loader's worker: what it does for a sample is told apart where it happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from bench.cpu_time import Clocks
from preflight.data.batch_reading import SampleFailure, read_batch

# Of samples that are made one by one, those that a batch is made of to time its collating; it takes them in turn, so
# that few are held and soon there.
_KEPT = 8
_CYCLED_S = 1.0

Stages = tuple[tuple[str, Callable[[Any], Any]], ...]


def reads_together(dataset: Any) -> bool:
    """Whether a loader asks a dataset for the samples of a batch together."""
    return callable(getattr(dataset, "__getitems__", None))


def stages_of(dataset: Any) -> Stages:
    """The stages that a dataset offers (`preflight.runs.protocol`), else one, "sample".

    Returns:
        Of a dataset that reads together, a batch's: from its indices to its samples. Of any other, a sample's.
    """
    together = reads_together(dataset)
    offered = getattr(dataset, "batch_stages" if together else "sample_stages", None)
    if callable(offered):
        return tuple(offered())
    return (("sample", dataset.__getitems__ if together else dataset.__getitem__),)


class TimedDataset:
    """Its item is not the sample but what making it took; where a batch is made together, an equal share of that.

    Args:
        dataset: To be timed.
        batch_size: Samples in a batch, for its collating.
        shared: Whether the batch goes into memory that is used again, as in a worker.
    """

    def __init__(self, dataset: Any, batch_size: int, *, shared: bool) -> None:
        self._dataset = dataset
        self._together = reads_together(dataset)
        self._batch_size = batch_size
        self._shared = shared
        self._made = 0
        self._kept: list[Any] = []
        self._block = np.empty(0, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._dataset)

    def batch_order(self, batch_size: int, seed: int) -> Callable[[int], np.ndarray] | None:
        """The dataset's own order, where it has one: which samples a batch holds decides what it costs."""
        own = getattr(self._dataset, "batch_order", None)
        return own(batch_size, seed) if own else None

    def __getitem__(self, index: int) -> Float64[np.ndarray, "stages_and_collate 3"]:
        """Makes a sample, and from time to time a batch.

        Returns:
            A row for each stage and one for collating, a sample's share of it: wall time, CPU time and time in line
            for a CPU, in seconds; not a number where it was not done this time.
        """
        return self._timed([index] if self._together else index, 1)

    def __getitems__(self, indices: Sequence[int]) -> list[Float64[np.ndarray, "stages_and_collate 3"]]:
        """Makes samples as the dataset would for a loader, and tells of each as `__getitem__` does."""
        if not self._together:
            return [self[index] for index in indices]
        return [self._timed(indices, len(indices))] * len(indices)

    def _timed(self, value: Any, number: int) -> np.ndarray:
        clocks = Clocks()
        rows = []
        for _, stage in stages_of(self._dataset):
            clocks.start()
            value = stage(value)
            rows.append(np.asarray(clocks.stop()) / number)
        self._kept = [*self._kept, *(value if self._together else [value])][-max(_KEPT, number) :]
        self._made += number
        collated = np.full(3, np.nan)
        if number > 1 or self._made == 2 or self._made % _KEPT == 0:
            clocks.start()
            self._collate()
            collated = np.asarray(clocks.stop()) / self._batch_size
        return np.array([*rows, collated])

    def _collate(self) -> None:
        places = [number % len(self._kept) for number in range(self._batch_size)]
        result = read_batch(self._kept, places, self._allocated)
        if isinstance(result, SampleFailure):
            raise ValueError(result.message)

    def _allocated(self, size: int) -> np.ndarray:
        if self._block.size < size or not self._shared:
            self._block = np.empty(size, dtype=np.uint8)
        return self._block[:size]


class CycledDataset:
    """Gives a few samples in turn, for ever: a loader of it has its batches ready almost at once.

    Args:
        dataset: The samples are its first ones that are asked for, at least two, since an array that is the same in all
            samples is stored once.
        batch_size: Not more than this many.
    """

    def __init__(self, dataset: Any, batch_size: int) -> None:
        self._dataset = dataset
        self._most = max(2, min(batch_size, _KEPT))
        self._samples: list[Any] = []
        self._next = 0
        self._until = 0.0

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        self._until = self._until or time.monotonic() + _CYCLED_S
        few = len(self._samples) < 2
        if few or (len(self._samples) < self._most and time.monotonic() < self._until):
            self._samples.append(self._dataset[index])
            return self._samples[-1]
        self._next = (self._next + 1) % len(self._samples)
        return self._samples[self._next]
