"""Statistics of the loader benchmark: blocks of batch intervals, medians with an interval, outliers.

How throughput is estimated. With ``n`` workers, ``n`` batches are made side by side and tend to arrive in bunches: of
``n`` intervals one is long and the others are almost nothing, so ``batch_size / median(interval)`` is not a rate of
anything. But the loader hands batches out in order, one of each worker in turn, hence the time from batch ``i`` to
batch ``i + n`` is just what one worker needs for one batch, wherever in a bunch ``i`` lies. Such a *turn* is the
smallest span over which throughput means something. Intervals are therefore summed over *blocks*: consecutive
intervals, whole turns, at least ``BLOCK_S`` long. A block gives one value, samples / seconds; the result is the median
over the blocks of all rounds, so that a few disturbed blocks do not move it.

Its interval is a bootstrap in two stages: rounds are drawn, then blocks within them. Blocks of one round share what the
machine was doing then, so taking them all for independent would give an interval too narrow to be true on a machine
that drifts.

What is left out. The first batches after a loader starts were being prepared while nobody waited: ``warmup_batches`` of
them are dropped, all that can have been prefetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

# Long enough to average over the timer and the scheduler (a scheduler slice is some ms), short enough for a slice of
# some seconds to give a dozen values.
BLOCK_S = 0.25
# A resampled median of five values or fewer cannot be trusted with 95 %: even their full range covers the median only
# with a probability of 1 - 2 * 0.5^5 = 93.75 %. The range is then given instead.
MIN_RESAMPLED = 6
_RESAMPLES = 2000
# A point is known well enough when its interval is within 2 % of its median on either side; beyond 10 % it is too wide
# to choose by, and the output says so.
TARGET_RELATIVE_HALF_WIDTH = 0.02
UNSTABLE_RELATIVE_HALF_WIDTH = 0.10


@dataclass(frozen=True)
class Estimate:
    """A median and its 95 % interval."""

    median: float
    lo: float
    hi: float

    @property
    def relative_half_width(self) -> float:
        """Half the interval's width as a share of the median."""
        return (self.hi - self.lo) / 2 / self.median if self.median else float("inf")

    def __str__(self) -> str:
        """For people: ``412 [405, 419]``."""
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        return f"{self.median:.{digits}f} [{self.lo:.{digits}f}, {self.hi:.{digits}f}]"


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """Turns outside Tukey's fences; they stay in all figures."""

    mild: int  # beyond 1.5 interquartile ranges from the quartiles, not beyond 3
    severe: int  # beyond 3
    turns: int  # all of them
    excess_share: float  # of the time of all turns: what the slow outliers took beyond a median turn


def median_interval(*rounds: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """The median of all values with its 95 % percentile-bootstrap interval, resampled by rounds and within them.

    Args:
        rounds: The values of each round; together at least one. Fewer than ``MIN_RESAMPLED`` give their range.
        seed: Of the resampling; the same values and seed give the same interval.
    """
    arrays = _nonempty(rounds)
    pooled = np.concatenate(arrays)
    median = float(np.median(pooled))
    if pooled.size < MIN_RESAMPLED:
        return Estimate(median, float(pooled.min()), float(pooled.max()))
    lo, hi = np.quantile(_resampled_medians(arrays, np.random.default_rng(seed)), [0.025, 0.975])
    return Estimate(median, float(lo), float(hi))


def median_ratio(
    new: Sequence[Sequence[float] | np.ndarray], old: Sequence[Sequence[float] | np.ndarray], *, seed: int = 0
) -> Estimate:
    """The ratio of two medians, new to old, with its 95 % interval: both are resampled, independently of each other.

    Args:
        new: The values of each round; together at least one, all positive.
        old: Likewise. Fewer than ``MIN_RESAMPLED`` values on either side give the range that the ratio can have.
        seed: Of the resampling.
    """
    new_arrays, old_arrays = _nonempty(new), _nonempty(old)
    new_pooled, old_pooled = np.concatenate(new_arrays), np.concatenate(old_arrays)
    ratio = float(np.median(new_pooled) / np.median(old_pooled))
    if min(new_pooled.size, old_pooled.size) < MIN_RESAMPLED:
        return Estimate(ratio, float(new_pooled.min() / old_pooled.max()), float(new_pooled.max() / old_pooled.min()))
    rng = np.random.default_rng(seed)
    ratios = _resampled_medians(new_arrays, rng) / _resampled_medians(old_arrays, rng)
    lo, hi = np.quantile(ratios, [0.025, 0.975])
    return Estimate(ratio, float(lo), float(hi))


def paired_ratio(
    new: Sequence[Sequence[float] | np.ndarray], old: Sequence[Sequence[float] | np.ndarray], *, seed: int = 0
) -> Estimate:
    """The median over rounds of the ratio of two medians, new to old, with its 95 % interval.

    What a machine did in a round, it did to both: drawing rounds and not values of either side keeps that out of the
    interval. Values are resampled within the rounds that were drawn.

    Args:
        new: The values of each round; at least one round, none empty, all positive.
        old: Likewise, of the same rounds.
        seed: Of the resampling. With fewer than ``MIN_RESAMPLED`` values on either side the interval is the range that
            the ratio can have in a round.
    """
    pairs = [(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)) for a, b in zip(new, old, strict=True)]
    if not pairs or not all(a.size and b.size for a, b in pairs):
        raise ValueError("a paired ratio needs at least one round, and values on both sides of each")
    ratios = np.array([np.median(a) / np.median(b) for a, b in pairs])
    ratio = float(np.median(ratios))
    if min(sum(one[side].size for one in pairs) for side in (0, 1)) < MIN_RESAMPLED:
        lo, hi = min(a.min() / b.max() for a, b in pairs), max(a.max() / b.min() for a, b in pairs)
        return Estimate(ratio, float(lo), float(hi))
    rng = np.random.default_rng(seed)

    def medians(values: np.ndarray) -> np.ndarray:
        resampled: np.ndarray = np.median(values[rng.integers(values.size, size=(_RESAMPLES, values.size))], axis=1)
        return resampled

    by_round = np.stack([medians(a) / medians(b) for a, b in pairs], axis=1)
    drawn = rng.integers(len(pairs), size=by_round.shape)
    lo, hi = np.quantile(np.median(np.take_along_axis(by_round, drawn, axis=1), axis=1), [0.025, 0.975])
    return Estimate(ratio, float(lo), float(hi))


def _nonempty(rounds: Sequence[Sequence[float] | np.ndarray]) -> list[np.ndarray]:
    arrays = [array for values in rounds if (array := np.asarray(values, dtype=np.float64)).size]
    if not arrays:
        raise ValueError("a median needs at least one value")
    return arrays


def _resampled_medians(arrays: list[np.ndarray], rng: np.random.Generator) -> Float[np.ndarray, " resamples"]:
    """Each round's place is taken by a round drawn at random, each of its blocks by a block of that round."""
    pooled = np.concatenate(arrays)
    sizes = np.array([array.size for array in arrays])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    drawn = np.repeat(rng.integers(sizes.size, size=(_RESAMPLES, sizes.size)), sizes, axis=1)
    within = (rng.random((_RESAMPLES, pooled.size)) * sizes[drawn]).astype(np.int64)
    medians: np.ndarray = np.median(pooled[starts[drawn] + within], axis=1)
    return medians


def percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """``p50``, ``p95`` and ``p99``."""
    points = np.percentile(np.asarray(values, dtype=np.float64), [50, 95, 99])
    return {name: float(point) for name, point in zip(("p50", "p95", "p99"), points, strict=True)}


def batches_in_turn(num_workers: int) -> int:
    """Batches after which every worker has given one."""
    return max(1, num_workers)


def warmup_batches(num_workers: int, prefetch_factor: int) -> int:
    """Batches to drop after a loader's start: all that can have been prefetched, and at least the first."""
    return max(1, num_workers * prefetch_factor)


def turn_durations(intervals: Sequence[float] | np.ndarray, num_workers: int) -> Float[np.ndarray, " turns"]:
    """Seconds of each whole turn in one uninterrupted series of batch intervals; an incomplete last one is dropped."""
    turn = batches_in_turn(num_workers)
    whole = len(intervals) // turn
    durations: np.ndarray = np.asarray(intervals[: whole * turn], dtype=np.float64).reshape(whole, turn).sum(axis=1)
    return durations


def turn_outliers(rounds: Sequence[Sequence[float]], num_workers: int) -> Outliers:
    """Turns outside Tukey's fences, of all rounds together.

    Turns and not intervals, since of the intervals of a turn one is long and the others are almost nothing.

    Args:
        rounds: Batch intervals of each round, in seconds.
        num_workers: Sets the length of a turn.
    """
    turns = np.concatenate([np.empty(0), *(turn_durations(one, num_workers) for one in rounds)])
    if not turns.size:
        return Outliers(mild=0, severe=0, turns=0, excess_share=0.0)
    low, median, high = np.percentile(turns, [25, 50, 75])
    beyond = np.maximum(low - turns, turns - high)  # distance from the box; negative within it
    # Tukey's fences, with criterion's names for them.
    mild, severe = beyond > 1.5 * (high - low), beyond > 3 * (high - low)
    slow = turns[mild & (turns > high)]
    total = float(turns.sum())
    return Outliers(
        mild=int((mild & ~severe).sum()),
        severe=int(severe.sum()),
        turns=int(turns.size),
        excess_share=float((slow - median).sum()) / total if total else 0.0,
    )


def rounds_apart(*rounds: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, ...] | None:
    """The rounds' medians, where the slowest round's interval ends below the fastest's; None where the rounds agree.

    Args:
        rounds: The values of each round; one with fewer than ``MIN_RESAMPLED`` has no interval and is left out.
        seed: Of the resampling.
    """
    found = [median_interval(values, seed=seed) for values in rounds if len(values) >= MIN_RESAMPLED]
    if len(found) < 2:
        return None
    slowest, fastest = (choose(found, key=lambda one: one.median) for choose in (min, max))
    return tuple(one.median for one in found) if slowest.hi < fastest.lo else None


def block_rates(
    intervals: Sequence[float] | np.ndarray, *, batch_size: int, num_workers: int, block_s: float = BLOCK_S
) -> Float[np.ndarray, " n"]:
    """Throughput of each block of one uninterrupted series of batch intervals, in samples/s.

    Args:
        intervals: Seconds between consecutive batches, without warm-up.
        batch_size: Samples in a batch.
        num_workers: Sets the length of a turn.
        block_s: A block is closed at the end of the turn in which it gets this long.

    Returns:
        One value a block; what is left at the end and shorter than a block is dropped, unless it is all there is.
    """
    turn = batches_in_turn(num_workers)
    rates: list[float] = []
    turns, seconds = 0, 0.0
    for duration in turn_durations(intervals, num_workers):
        turns += 1
        seconds += float(duration)
        if seconds >= block_s:
            rates.append(turns * turn * batch_size / seconds)
            turns, seconds = 0, 0.0
    if not rates and seconds > 0:
        rates.append(turns * turn * batch_size / seconds)
    return np.asarray(rates)
