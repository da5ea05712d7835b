"""Which samples make batch k: a pure function, so that a resumed run gets the very batches it would have had."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt64

from preflight.data.diversity import episodes_per_batch
from preflight.errors import UsageError


def batch_indices(num_samples: int, batch_size: int, seed: int, batch: int) -> Int64[np.ndarray, " batch_size"]:
    """Gives the samples of one batch out of an endless stream of shuffled epochs.

    An epoch is a permutation of all samples cut into batches; the rest that fills no batch is dropped.

    Args:
        num_samples: Samples in the dataset.
        batch_size: Samples in a batch.
        seed: Of the shuffle.
        batch: Number of the batch, from 0, through all epochs.

    Returns:
        Indices of samples; no sample twice within an epoch.

    Raises:
        UsageError: if the dataset has no full batch.
    """
    _require_a_batch(num_samples, batch_size)
    epoch, position = divmod(batch, num_samples // batch_size)
    return _permutation(num_samples, seed, epoch)[position * batch_size : (position + 1) * batch_size].copy()


def order_of(dataset: Any, batch_size: int, seed: int) -> Callable[[int], Int64[np.ndarray, " batch_size"]]:
    """The order in which a dataset's samples make batches.

    Args:
        dataset: One with `batch_order(batch_size, seed)`, which gives a function of the batch's number or None, has an
            order of its own; no dataset needs to.
        batch_size: Samples in a batch.
        seed: Of the shuffle.

    Returns:
        The dataset's order, else `batch_indices`.

    Raises:
        UsageError: if the dataset has no full batch.
    """
    own = getattr(dataset, "batch_order", None)
    return (own(batch_size, seed) if own else None) or functools.partial(batch_indices, len(dataset), batch_size, seed)


class WindowedOrder:
    """Batches out of epochs in which samples are shuffled among few episodes at a time; for `BatchLoader`'s `order`.

    Each epoch permutes the episodes, and shuffles the samples of each `window` episodes that follow one another then.
    Fewer videos are open at a time and frames of one lie closer together, but the samples of a batch are of at most
    `window` episodes, or of two windows where it lies across their border: `episodes_per_batch` says what is lost.
    Like `batch_indices` it is a function of seed and number of the batch alone.

    Args:
        length: Frames of each episode, in the order of the dataset.
        window: Episodes that are shuffled together.
        batch_size: Samples in a batch.
        seed: Of the shuffle.

    Raises:
        UsageError: if the dataset has no full batch, or the window no episode.
    """

    def __init__(self, length: Int64[np.ndarray, " e"], window: int, batch_size: int, seed: int) -> None:
        self._num_samples = int(length.sum())
        _require_a_batch(self._num_samples, batch_size)
        if window < 1:
            raise UsageError(f"data.shuffle_window must be at least 1 episode, got {window}")
        self._length = length
        self._window = window
        self._batch_size = batch_size
        self._seed = seed
        self._epoch: tuple[int, Int64[np.ndarray, " n"]] | None = None  # the last one asked for, and its order

    def __call__(self, batch: int) -> Int64[np.ndarray, " batch_size"]:
        """Gives the samples of one batch.

        Args:
            batch: Number of the batch, from 0, through all epochs.

        Returns:
            Indices of samples; no sample twice within an epoch.
        """
        epoch, position = divmod(batch, self._num_samples // self._batch_size)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._order(epoch)
        return self._epoch[1][position * self._batch_size : (position + 1) * self._batch_size].copy()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_epoch": None}

    def windows(self, epoch: int) -> list[Int64[np.ndarray, " window"]]:
        """The episodes that are shuffled together in an epoch, as positions among all, in the order of the windows."""
        episodes = np.argsort(_keys(len(self._length), self._seed, epoch, "episodes"), kind="stable")
        return [episodes[i : i + self._window] for i in range(0, len(episodes), self._window)]

    def episodes_per_batch(self) -> tuple[float, float]:
        """What the window costs: the mean number of different episodes in a batch of the first epoch.

        Returns:
            The number with this window, and the one with all samples shuffled together.
        """
        windowed = episodes_per_batch(self._length, self._batch_size, self.windows(0))
        return windowed, episodes_per_batch(self._length, self._batch_size)

    def _order(self, epoch: int) -> Int64[np.ndarray, " n"]:
        keys = _keys(self._num_samples, self._seed, epoch, "samples")
        starts = np.cumsum(self._length) - self._length
        order = np.empty(self._num_samples, dtype=np.int64)
        at = 0
        for episodes in self.windows(epoch):
            parts = [np.arange(starts[e], starts[e] + self._length[e]) for e in episodes.tolist()]
            samples = np.concatenate(parts)
            order[at : at + len(samples)] = samples[np.argsort(keys[at : at + len(samples)], kind="stable")]
            at += len(samples)
        return order


def _require_a_batch(num_samples: int, batch_size: int) -> None:
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    if num_samples < batch_size:
        raise UsageError(
            f"the dataset has {num_samples} samples, less than one batch of {batch_size}",
            f"Set batch_size to at most {num_samples}." if num_samples else "The dataset is empty.",
        )


@functools.lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    order = np.argsort(_keys(num_samples, seed, epoch), kind="stable")
    order.flags.writeable = False
    return order


def _keys(count: int, seed: int, epoch: int, of: Literal["", "episodes", "samples"] = "") -> UInt64[np.ndarray, " n"]:
    # Sorted raw words: numpy promises the stream of a bit generator for ever, that of Generator.permutation not.
    words = [seed % 2**64, epoch, *of.encode()]
    return np.random.Philox(np.random.SeedSequence(words)).random_raw(count)
