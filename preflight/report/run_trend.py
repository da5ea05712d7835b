"""Whether a noisy curve falls: a test that neither a spike nor a plateau at the end decides."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

_BLOCKS = 20
_FEWEST = 8  # blocks; below, even a curve that falls all along could do so by chance in some of a hundred cases
_ONE_SIDED_5_PERCENT = 1.645


@dataclasses.dataclass(frozen=True)
class Trend:
    """How a curve goes."""

    first: float  # median of the first quarter
    last: float  # median of the last quarter
    tau: float  # Kendall's, of the block medians with time
    blocks: int
    falls: bool


def falling(values: Sequence[float]) -> Trend | None:
    """Tests for a falling trend by Mann and Kendall, over the medians of up to 20 blocks of equal length.

    A curve falls if tau is negative at the one-sided level of 5 %, and the median of its last quarter lies below that
    of its first. Medians of blocks, since losses of neighbouring steps are not independent and spikes are no trend.
    Variance without ties, n(n-1)(2n+5)/18 (Kendall, "Rank Correlation Methods", 1975).

    Args:
        values: Finite, in the order of their steps.

    Returns:
        None where there are fewer than eight values.
    """
    blocks = min(_BLOCKS, len(values))
    if blocks < _FEWEST:
        return None
    medians = [
        statistics.median(values[i * len(values) // blocks : (i + 1) * len(values) // blocks]) for i in range(blocks)
    ]
    score = sum(
        (later > earlier) - (later < earlier) for i, earlier in enumerate(medians) for later in medians[i + 1 :]
    )
    deviation = math.sqrt(blocks * (blocks - 1) * (2 * blocks + 5) / 18)
    quarter = len(values) // 4
    first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
    return Trend(
        first=first,
        last=last,
        tau=2 * score / (blocks * (blocks - 1)),
        blocks=blocks,
        falls=score / deviation < -_ONE_SIDED_5_PERCENT and last < first,
    )
