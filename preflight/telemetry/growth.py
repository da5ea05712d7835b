"""Whether workers grow, how fast, how certain that is, and what it comes to over an epoch or a run.

Samples of memory are not independent: a batch more or a decoder's buffer shows in several samples in a row, so that
the textbook error of a slope is too small by a factor of two or three over a few seconds. The degrees of freedom are
therefore divided by (1 + r) / (1 - r), with r the correlation of neighbouring residuals, as of a first-order
autoregression, and the interval is Student's.

A slope says nothing of later where it is that of caches that fill. The workers of a healthy run grew by 240 MiB a
minute over their first four seconds and no more after ten: their decoders open videos, and pages that they share
become their own. So memory is taken to go on growing only where workers were watched for longer, and still grew over
the later half of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Memory must have been watched for this long after warm-up for its slope to be given: batches come and go by megabytes,
# and over a second or two that is a slope of hundreds of MiB per minute.
MIN_GROWTH_S = 5.0
# Whether growth lasts is said only of series that are at least as long: one set of workers, watched all the time.
LASTING_S = 15.0
_LEAST_FREEDOM = 2.0
_MOST_CORRELATION = 0.9

Series = Sequence[tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A slope, in units of value per unit of time."""

    slope: float
    error: float  # standard error, of that many independent samples as there are in effect
    ci95: tuple[float, float]
    # Whether the interval lies above zero, and still does over the later half; None: it does, and whether it will go on
    # cannot be told, as no series was long enough.
    lasting: bool | None

    def scaled(self, factor: float) -> Growth:
        """In other units."""
        low, high = self.ci95
        return Growth(
            slope=self.slope * factor,
            error=self.error * factor,
            ci95=(low * factor, high * factor),
            lasting=self.lasting,
        )


def watched_s(series: Series) -> float:
    """Seconds that all series together cover."""
    return float(sum(times[-1] - times[0] for times, _ in series if len(times)))


def growth(series: Series) -> Growth | None:
    """The common slope of several series, each with its own intercept, since each round starts its workers anew.

    Args:
        series: Pairs of times and values.

    Returns:
        None where they cover less than `MIN_GROWTH_S` or have too few samples for an interval.
    """
    if watched_s(series) < MIN_GROWTH_S:
        return None
    whole = _fit(series)
    if whole is None:
        return None
    slope, error, half = whole
    lasting: bool | None = slope - half > 0
    if lasting:
        long = [(times, values) for times, values in series if len(times) and times[-1] - times[0] >= LASTING_S]
        later = _fit([_later_half(times, values) for times, values in long])
        lasting = None if later is None else later[0] - later[2] > 0
    return Growth(slope=slope, error=error, ci95=(slope - half, slope + half), lasting=lasting)


def student_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t: Abramowitz and Stegun 26.7.5, within 1 % from 3 degrees of freedom on."""
    z = 1.959964
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def _fit(series: Series) -> tuple[float, float, float] | None:
    """Slope, its standard error and half of its interval."""
    t, v = [], []
    for times, values in series:
        if len(times) >= 2:
            t.append(np.asarray(times, dtype=np.float64) - np.mean(times))
            v.append(np.asarray(values, dtype=np.float64) - np.mean(values))
    freedom = sum(one.size - 1 for one in t) - 1
    spread = float(sum(one @ one for one in t))
    if freedom < _LEAST_FREEDOM or spread == 0:
        return None
    slope = float(sum(a @ b for a, b in zip(t, v, strict=True))) / spread
    residuals = [b - slope * a for a, b in zip(t, v, strict=True)]
    squares = float(sum(one @ one for one in residuals))
    correlation = float(sum(one[:-1] @ one[1:] for one in residuals)) / squares if squares else 0.0
    r = min(max(correlation, 0.0), _MOST_CORRELATION)
    effective = max(_LEAST_FREEDOM, freedom * (1 - r) / (1 + r))
    error = math.sqrt(squares / freedom / spread * freedom / effective)
    return slope, error, student_quantile(effective) * error


def _later_half(times: Sequence[float], values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    middle = (times[0] + times[-1]) / 2 if len(times) else 0.0
    first = next((n for n, at in enumerate(times) if at >= middle), 0)
    return times[first:], values[first:]
