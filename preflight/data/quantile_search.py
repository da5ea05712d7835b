"""An exact quantile of values that are seen piece by piece and never held: a bracket around it, then a count."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int64

# Values that a search holds, at first.
CAPACITY = 1 << 19

# Standard deviations that a sample's rank is allowed to be off. Beyond 6 it is once in 500 million; then the counts say
# so, and the values are gone through once more.
_SPREAD = 6.0


class QuantileSearch:
    """Looks for one quantile of one dimension.

    The values are added as often as `found` gives None, all of them each time. What lies below the bracket is counted,
    what lies in it is collected; a quantile outside, or too many values inside, gives the next bracket.

    Args:
        quantile: Between 0 and 1.
        total: How many values there are, by weight.
        sample: Values drawn independently of each other, each as likely as its weight; None brackets nothing.
    """

    def __init__(self, quantile: float, total: int, sample: Float[np.ndarray, " m"] | None = None) -> None:
        self._rank = quantile * (total - 1)
        self._total = total
        # From the side on which fewer values lie there is less to go through.
        self._from_above = quantile > 0.5
        low, high, share = (-math.inf, math.inf, 1.0) if sample is None else _bracket(quantile, sample)
        self._rng = np.random.default_rng(0)
        self._capacity = CAPACITY
        self._start(low, high, expected=share * total)

    def _start(self, low: float, high: float, expected: float) -> None:
        self._low, self._high = low, high
        self._kept = min(1.0, self._capacity / max(1.0, expected))  # share of the values inside that is collected
        self._capacity *= 2  # whatever the values, some bracket is collected whole
        self._below = self._at_low = self._within = self._at_high = 0  # weights
        self._values: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    def add(self, values: Float[np.ndarray, " n"], weights: Int64[np.ndarray, " n"] | None = None) -> None:
        """Takes some of the values, all finite.

        Args:
            values: The values.
            weights: How often each counts; None: once.
        """
        near = values >= self._low if self._from_above else values <= self._high
        total = _weight(near, weights)
        inside = values[near]
        carried = None if weights is None else weights[near]
        below = inside < self._low
        self._below += (len(values) if weights is None else int(weights.sum())) - total if self._from_above else 0
        self._below += _weight(below, carried)
        self._at_low += _weight(inside == self._low, carried)
        if self._high > self._low:
            self._at_high += _weight(inside == self._high, carried)
        within = (inside > self._low) & (inside < self._high)
        self._within += _weight(within, carried)
        if self._kept < 1:
            within &= self._rng.random(len(within)) < self._kept
        self._values.append(inside[within])
        if carried is not None:
            self._weights.append(carried[within])

    def found(self) -> float | None:
        """The quantile, with linear interpolation as numpy gives it; None: all values are to be added once more."""
        values = np.concatenate(self._values) if self._values else np.empty(0)
        weights = np.concatenate(self._weights) if self._weights else None
        ranks = (int(self._rank), min(int(self._rank) + 1, self._total - 1))
        inner = [rank - self._below - self._at_low for rank in ranks]  # ranks among the values inside
        if inner[0] < -self._at_low:  # the sample misled; the other rank may lie in the bracket
            self._start(-math.inf, self._low if inner[1] < 0 else self._high, expected=self._total)
        elif inner[1] >= self._within + self._at_high:
            self._start(self._high if inner[0] >= self._within else self._low, math.inf, expected=self._total)
        elif self._kept < 1 and any(0 <= rank < self._within for rank in inner):
            self._narrow(values, weights, inner)
        else:
            at = dict(zip(inner, self._at_ranks(values, weights, inner), strict=True))
            return at[inner[0]] + (at[inner[1]] - at[inner[0]]) * (self._rank - ranks[0])
        return None

    def _at_ranks(self, values: np.ndarray, weights: np.ndarray | None, ranks: list[int]) -> list[float]:
        inside = sorted({rank for rank in ranks if 0 <= rank < self._within})
        if not inside:
            at = {}
        elif weights is None:
            ordered = np.partition(values, inside)
            at = {rank: float(ordered[rank]) for rank in inside}
        else:
            order = np.argsort(values)
            ends = np.cumsum(weights[order])
            at = {rank: float(values[order[np.searchsorted(ends, rank, side="right")]]) for rank in inside}
        return [at.get(rank, self._low if rank < 0 else self._high) for rank in ranks]

    def _narrow(self, values: np.ndarray, weights: np.ndarray | None, ranks: list[int]) -> None:
        """A narrower bracket, from the share of the values inside that was collected."""
        order = np.argsort(values)
        weights = np.ones(len(values), np.int64) if weights is None else weights[order]
        ends, ordered = np.cumsum(weights), values[order]
        collected = int(ends[-1]) if len(ends) else 0
        spread = _SPREAD * math.sqrt(float(weights @ weights)) + 2
        scale = collected / self._within
        first = np.searchsorted(ends, ranks[0] * scale - spread) if ranks[0] * scale > spread else -1
        last = np.searchsorted(ends, ranks[1] * scale + spread)
        low = self._low if first < 0 else float(ordered[first])
        high = float(ordered[last]) if last < len(ordered) else self._high
        self._start(low, high, expected=(last - first) / max(1, len(ordered)) * self._within)


def _bracket(quantile: float, sample: np.ndarray) -> tuple[float, float, float]:
    """Bounds that hold the quantile in all likelihood, and the share of the values that is expected within."""
    ordered, count = np.sort(sample), len(sample)
    middle, spread = quantile * (count - 1), _SPREAD * math.sqrt(count * quantile * (1 - quantile)) + 2
    first, last = math.floor(middle - spread), math.ceil(middle + spread)
    low = float(ordered[first]) if first >= 0 else -math.inf
    high = float(ordered[last]) if last < count else math.inf
    return low, high, (last - first) / count


def _weight(mask: np.ndarray, weights: np.ndarray | None) -> int:
    return int(np.count_nonzero(mask)) if weights is None else int(weights[mask].sum())
