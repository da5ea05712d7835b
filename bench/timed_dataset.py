"""Datasets that time themselves inside a loader's worker: what it does for a sample is told apart where it happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float64

from bench.cpu_time import Clocks
from preflight.data.batch_reading import SampleFailure, read_batch

# Samples that a batch is made of to time its collating; it takes them in turn, so that few are held and soon there.
_KEPT = 8
_CYCLED_S = 1.0


def stages_of(dataset: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """The stages of a `preflight.runs.protocol.StagedDataset`; of any other dataset one, "sample"."""
    offered = getattr(dataset, "sample_stages", None)
    return tuple(offered()) if callable(offered) else (("sample", dataset.__getitem__),)


class TimedDataset:
    """Its item is not the sample but what making it took.

    Args:
        dataset: To be timed.
        batch_size: Samples in a batch, for its collating.
        shared: Whether the batch goes into memory that is used again, as in a worker.
    """

    def __init__(self, dataset: Any, batch_size: int, *, shared: bool) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._shared = shared
        self._made = 0
        self._kept: list[Any] = []
        self._block = np.empty(0, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Float64[np.ndarray, "stages_and_collate 3"]:
        """Makes a sample, and from time to time a batch.

        Returns:
            A row for each stage and one for collating, a sample's share of it: wall time, CPU time and time in line
            for a CPU, in seconds; not a number where it was not done this time.
        """
        clocks = Clocks()
        rows = []
        value: Any = index
        for _, stage in stages_of(self._dataset):
            clocks.start()
            value = stage(value)
            rows.append(clocks.stop())
        self._kept = [*self._kept[-(_KEPT - 1) :], value]
        self._made += 1
        collated = np.full(3, np.nan)
        if self._made == 2 or self._made % _KEPT == 0:
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
