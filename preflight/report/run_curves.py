"""Curves of bounded length: whatever a bucket holds, its least and its greatest value are kept."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import statistics
from typing import Any

from preflight.report.run_read import RunFiles
from preflight.report.run_series import Series

BUCKETS = 300  # about a point for each pixel of a small chart
_NAMED_STEPS = 20  # of values that are no finite numbers, in the document
_SHORTEST_PAUSE_S = 60.0
_SHORTEST_RATE_S = 0.5  # over less, a rate is mostly the moment of its reading
_PAUSE_FACTOR = 20  # times the usual distance of two records


def curve(series: Series, buckets: int = BUCKETS) -> dict[str, Any]:
    """A series in buckets of equal width, plain values for JSON.

    Args:
        series: Over ascending x.
        buckets: At most.

    Returns:
        ``x``, ``min``, ``max`` and ``mean``, lists of one length, a value for each bucket that has any; None where none
        in it is finite. ``broken``: the places of the buckets with values that are not finite. ``points``, ``first``,
        ``last``, ``least`` and ``greatest`` of all finite values, None without any; ``not_finite``, how many are not,
        and ``not_finite_at``, where the first of them are.
    """
    import numpy as np

    x, y = np.frombuffer(series.x, np.float64), np.frombuffer(series.y, np.float64)
    good = np.isfinite(y)
    finite = y[good]
    at = _bucket_starts(x, buckets)
    held = np.where(good, y, np.nan)
    least, greatest = (np.fmin.reduceat(held, at), np.fmax.reduceat(held, at)) if len(x) else (held, held)
    counts = np.add.reduceat(good, at, dtype=np.int64) if len(x) else np.zeros(0)
    lengths = np.diff(np.append(at, len(x)))
    # Scaled first: the sum of values near the largest number would be infinite.
    with np.errstate(under="ignore"):
        parts = np.where(good, y, 0.0) / np.repeat(np.maximum(counts, 1), lengths)
        mean = np.where(counts > 0, np.add.reduceat(parts, at) if len(x) else parts, np.nan)
    return {
        "x": (np.add.reduceat(x, at) / lengths).tolist() if len(x) else [],
        "min": _plain(least),
        "max": _plain(greatest),
        "mean": _plain(mean),
        "broken": np.flatnonzero(counts < lengths).tolist(),
        "points": len(x),
        "first": float(finite[0]) if len(finite) else None,
        "last": float(finite[-1]) if len(finite) else None,
        "least": float(finite.min()) if len(finite) else None,
        "greatest": float(finite.max()) if len(finite) else None,
        "not_finite": int((~good).sum()),
        "not_finite_at": x[~good][:_NAMED_STEPS].tolist(),
    }


def _bucket_starts(x: Any, buckets: int) -> Any:
    import numpy as np

    if len(x) <= buckets:
        return np.arange(len(x))
    span = x[-1] - x[0]
    if span <= 0:
        return np.zeros(1, np.int64)
    places = np.minimum((x - x[0]) / span * buckets, buckets - 1).astype(np.int64)
    return np.flatnonzero(np.diff(places, prepend=-1))


def _plain(values: Any) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


@dataclasses.dataclass(frozen=True)
class Clock:
    """The time that a run was running: pauses between a kill and its resume take none of it."""

    began: float
    pauses: tuple[tuple[float, float], ...]  # from and to, Unix seconds

    def at(self, time: float) -> float:
        """Seconds of running up to a time."""
        place = bisect.bisect_right(self.pauses, (time, -math.inf))
        paused = sum(end - start for start, end in self.pauses[:place])
        if place and time < self.pauses[place - 1][1]:
            paused -= self.pauses[place - 1][1] - time
        return time - self.began - paused

    def series(self, series: Series) -> Series:
        """A series over Unix time as one over the time of running."""
        moved = Series()
        for time, value in zip(series.x, series.y, strict=True):
            moved.add(self.at(time), value)
        return moved


def run_clock(files: RunFiles) -> Clock | None:
    """The clock of a run; None where nothing tells the time.

    A pause is a gap between records, of metrics and telemetry together, that is at least a minute and 20 times as long
    as usual; telemetry goes on while a checkpoint is saved.
    """
    times = sorted(
        [*files.telemetry.times, *(time for time in files.metrics.times.y if math.isfinite(time) and time > 0)]
    )
    if not times:
        return None
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    longest = max(_SHORTEST_PAUSE_S, _PAUSE_FACTOR * statistics.median(gaps)) if gaps else math.inf
    pauses = tuple((times[i], times[i + 1]) for i, gap in enumerate(gaps) if gap > longest)
    return Clock(times[0], pauses)


def rate(series: Series) -> Series:
    """The rate per second of a count that only grows; one that starts anew is left out for a moment."""
    found = Series()
    before = 0
    for i in range(1, len(series.x)):
        seconds, change = series.x[i] - series.x[before], series.y[i] - series.y[before]
        if change >= 0 and seconds < _SHORTEST_RATE_S:
            continue
        if change >= 0 and seconds <= _SHORTEST_PAUSE_S:  # over a pause, it would be nobody's rate
            found.add(series.x[i], change / seconds)
        before = i
    return found
