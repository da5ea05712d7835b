"""Which samples make batch k: a pure function, so that a resumed run gets the very batches it would have had."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int64

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
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    if num_samples < batch_size:
        raise UsageError(
            f"the dataset has {num_samples} samples, less than one batch of {batch_size}",
            f"Set batch_size to at most {num_samples}." if num_samples else "The dataset is empty.",
        )
    epoch, position = divmod(batch, num_samples // batch_size)
    return _permutation(num_samples, seed, epoch)[position * batch_size : (position + 1) * batch_size].copy()


@functools.lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    # Sorting raw words: numpy promises the stream of a bit generator for ever, that of Generator.permutation not.
    keys = np.random.Philox(np.random.SeedSequence([seed % 2**64, epoch])).random_raw(num_samples)
    order = np.argsort(keys, kind="stable")
    order.flags.writeable = False
    return order
