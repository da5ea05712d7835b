"""What becomes of each dimension under normalisation statistics, and whether they can be of this data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from preflight.data.metadata import DatasetInfo
from preflight.data.normalize import EPSILON, NormStats, normalize
from preflight.data.streamed_stats import Summary, ValueSource, summarise

Norm = Literal["zscore", "quantile"]

# Beyond it a normalised value is far out: of data under their own quantiles it is at most 2 % of the values, and under
# their own mean and deviation at most 4 %, whatever their distribution (Chebyshev's inequality). Not 1 for quantiles:
# openpi reads them off a histogram of 5,000 bins, as the lower edge of one, and a joint that rests at its stop then has
# a fifth of its values a little beyond 1 (seen with Unitree G1's hands).
FAR_OUT = {"quantile": 1.05, "zscore": 5.0}

# When statistics are said to be of other data. A sample's mean is off by std / sqrt(n) where n counts independent
# frames; neighbours are nearly equal, so that n may be as small as the number of episodes, or less. Even n = 1 keeps
# the mean within a deviation or two, and a sample's deviation is seldom twice the true one: 3 and 4 are beyond what
# sampling does. Far out are 2 % or at most 4 % of all values; whole episodes at one end of the range may make that
# several times as much in a sample.
_SHIFT = 3.0  # of the mean, in the statistics' deviations
_WIDER = 4.0  # the data's deviation to the statistics'
_SHARE_FAR_OUT = {"quantile": 0.25, "zscore": 0.1}
# Downwards there is no such bound: a rare motion may be missing from a sample, and statistics of a base model, reused
# on purpose, are wider than one task. They count as too wide only where they are in most dimensions.
_NARROWER = 0.1

# A column with one of these words in its key is the state, or the actions.
_WORDS = {"state": ("state", "qpos", "joint"), "actions": ("action",)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimension:
    """One dimension of state or actions: the statistics that are given for it, and what the data do under them."""

    name: str  # "state" or "actions"
    index: int
    label: str  # as in "actions[6] (kLeftWristYaw)"
    given_mean: float
    given_std: float
    given_q01: float
    given_q99: float
    low: float  # of the data before they are normalised, as are the next three
    high: float
    mean: float
    std: float
    normalised_low: float
    normalised_high: float
    share_far_out: float  # of the values, 0 to 1

    @property
    def furthest(self) -> float:
        """The normalised value of the largest magnitude, with its sign."""
        return max(self.normalised_low, self.normalised_high, key=abs)

    @property
    def constant(self) -> bool:
        """Whether all its values are one and the same."""
        return self.low == self.high

    @property
    def shift(self) -> float:
        """From the given mean to the data's, in given standard deviations."""
        return abs(self.mean - self.given_mean) / (self.given_std + EPSILON)

    @property
    def ratio(self) -> float:
        """The data's standard deviation to the given one."""
        return (self.std + EPSILON) / (self.given_std + EPSILON)


def dimension_labels(info: DatasetInfo, columns: Sequence[str], name: str, width: int) -> tuple[str, ...]:
    """What to call each dimension: its index, and the joint's name where the dataset gives one without doubt.

    Args:
        info: The dataset.
        columns: The keys that a run asks for.
        name: "state" or "actions".
        width: Dimensions after the run's transforms.

    Returns:
        One a dimension.
    """
    keys = [key for key in columns if key in info.features and key not in info.camera_keys]
    keys = [key for key in keys if any(word in key for word in _WORDS[name])]
    # Transforms may join or cut columns: names are taken where there is one column, with as many dimensions.
    names = info.features[keys[0]].names if len(keys) == 1 else None
    if names is None or len(names) != width:
        return tuple(f"{name}[{index}]" for index in range(width))
    return tuple(f"{name}[{index}] ({joint})" for index, joint in enumerate(names))


def dimensions(
    source: ValueSource,
    stats: Mapping[str, NormStats],
    norm: Norm,
    labels: Mapping[str, Sequence[str]],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Dimension]:
    """Looks at each dimension before and after normalisation; the values are gone through once.

    Args:
        source: The values before normalisation; all finite.
        stats: By "state" and "actions", of at least the values' dimensions; what is beyond them is left aside, as
            openpi does.
        norm: The formula.
        labels: Of the dimensions.
        progress: Told how many frames of how many have been seen.

    Returns:
        One a dimension, in their order.
    """
    bounds = {name: _far_out(cut_to(stats[name], width), norm) for name, width in source.widths.items()}
    summaries = summarise(source, bounds, progress=progress)
    return [d for name in source.widths for d in described(name, summaries[name], stats[name], norm, labels[name])]


def described(name: str, summary: Summary, stats: NormStats, norm: Norm, labels: Sequence[str]) -> list[Dimension]:
    """The dimensions of a summary under statistics.

    Args:
        name: "state" or "actions".
        summary: Of their values.
        stats: Of at least these dimensions.
        norm: The formula.
        labels: Of the dimensions.

    Returns:
        One a dimension, in their order.
    """
    kept = cut_to(stats, len(summary.mean))
    # Both formulas are straight lines: the extremes stay the extremes.
    low, high = np.sort(normalize(np.stack([summary.low, summary.high]), kept, norm), axis=0)
    return [
        Dimension(
            name=name,
            index=index,
            label=labels[index],
            given_mean=float(kept.mean[index]),
            given_std=float(kept.std[index]),
            given_q01=float(kept.q01[index]),
            given_q99=float(kept.q99[index]),
            low=float(summary.low[index]),
            high=float(summary.high[index]),
            mean=float(summary.mean[index]),
            std=float(summary.std[index]),
            normalised_low=float(low[index]),
            normalised_high=float(high[index]),
            share_far_out=float(summary.share_outside[index]),
        )
        for index in range(len(summary.mean))
    ]


def cut_to(stats: NormStats, width: int) -> NormStats:
    """The statistics of the first dimensions."""
    return NormStats(**{field.name: getattr(stats, field.name)[:width] for field in dataclasses.fields(stats)})


def _far_out(stats: NormStats, norm: Norm) -> tuple[np.ndarray, np.ndarray]:
    """The values that are `FAR_OUT` after normalisation, float64[d] each; between them nothing is."""
    far = FAR_OUT[norm]
    if norm == "zscore":
        reach = far * (stats.std + EPSILON)
        return stats.mean - reach, stats.mean + reach
    width = stats.q99 - stats.q01 + EPSILON
    low, high = np.sort([stats.q01 + (1 - far) / 2 * width, stats.q01 + (1 + far) / 2 * width], axis=0)
    return low, high


def off_the_statistics(seen: Sequence[Dimension], norm: Norm) -> list[Dimension]:
    """The dimensions whose data lie elsewhere, or go further, than data of the given statistics could, worst first."""

    def disagreement(d: Dimension) -> float:
        return max(d.shift / _SHIFT, d.ratio / _WIDER, d.share_far_out / _SHARE_FAR_OUT[norm])

    return sorted((d for d in seen if disagreement(d) > 1), key=disagreement, reverse=True)


def drowned_in_the_statistics(seen: Sequence[Dimension]) -> list[Dimension]:
    """The dimensions that hardly move under the given statistics, worst first; none where it is only some of them."""
    moving = [d for d in seen if not d.constant]
    drowned = sorted((d for d in moving if d.ratio < _NARROWER), key=lambda d: d.ratio)
    return drowned if len(drowned) * 2 > len(moving) else []
