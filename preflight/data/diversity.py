"""How many episodes a batch has samples of: what a bounded shuffle costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


def episodes_per_batch(
    length: Int64[np.ndarray, " e"], batch_size: int, windows: Sequence[Int64[np.ndarray, " w"]] | None = None
) -> float:
    """The number of different episodes in a batch, as a mean over an epoch.

    Of `c` samples drawn without replacement from `n`, the chance that none is of an episode with `k` of these is
    C(n - k, c) / C(n, c). A batch across the border of windows is a draw from each.

    Args:
        length: Frames of each episode.
        batch_size: Samples in a batch; no more than there are.
        windows: The episodes that are shuffled together, in the order of an epoch; None: all of them.

    Returns:
        The expected number of different episodes, over the shuffles within the windows.
    """
    total = 0.0
    batches = int(length.sum()) // batch_size
    end = 0
    for episodes in [np.arange(len(length))] if windows is None else windows:
        samples = int(length[episodes].sum())
        start, end = end, end + samples
        last = min(end, batches * batch_size)  # what fills no batch is dropped
        if last <= start:
            break
        # Batches that begin before the window, lie in it, and go on after it.
        first_whole, after_whole = -(-start // batch_size), last // batch_size
        if first_whole > after_whole:  # the window lies within one batch
            draws = {last - start: 1}
        else:
            draws = {batch_size: after_whole - first_whole}
            for edge in (first_whole * batch_size - start, last - after_whole * batch_size):
                draws[edge] = draws.get(edge, 0) + 1
        total += sum(
            times * _different(length[episodes], samples, drawn) for drawn, times in draws.items() if drawn * times
        )
    return total / batches


def _different(length: Int64[np.ndarray, " w"], samples: int, drawn: int) -> float:
    """The expected number of episodes among samples that are drawn without replacement."""
    absent = np.ones(len(length))
    for taken in range(drawn):
        absent *= np.maximum(0, samples - length - taken) / (samples - taken)
    return float((1 - absent).sum())
