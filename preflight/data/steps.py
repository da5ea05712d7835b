"""Steps between neighbouring frames, and the few that are no motion: a glitch, a wrapped angle, frames left out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float32, Int64

# A jump is so many times as far as all but a thousandth of the steps that the dimension makes, and goes over so much of
# its range. The furthest of Unitree G1's 26 joints at 30 fps is 2.7 times as far; fingers do a third of their range.
_TIMES = 20.0
_OF_RANGE = 0.25
# And over so much of the range of the column's livelier dimensions: of a joint at rest every touch is a jump.
_OF_COLUMN = 0.1
# A motion speeds up: the steps beside its fastest go the same way.
_ALONGSIDE = 0.2
_LEFT_OUT = 10  # the largest steps, at the least: a few jumps should not pass for the dimension's own pace
_MOVING = 100  # steps from which a dimension's pace can be told
_SAMPLE = 100_000  # frames
_LARGEST = 16  # steps of each dimension that are looked at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jump:
    """A step that is no motion."""

    dim: int
    frame: int  # counted over the dataset: the one that it leads to
    before: float
    after: float
    typical: float  # the size of step that all but a thousandth of the dimension's steps stay below


@dataclasses.dataclass(frozen=True)
class _Step:
    frame: int
    before: float
    after: float
    previous: float  # the step before this one; 0 at an episode's beginning
    following: float


class StepSample:
    """The steps of one column, in memory that does not grow with the frames.

    Args:
        width: Dimensions.
        frames: How many there will be.
    """

    def __init__(self, width: int, frames: int) -> None:
        self._share = min(1.0, _SAMPLE / frames)
        self._rng = np.random.default_rng(0)
        self._values: list[np.ndarray] = []
        self._steps: list[np.ndarray] = []
        self._largest: list[list[_Step]] = [[] for _ in range(width)]

    def add(self, values: Float32[np.ndarray, "n d"], first: Int64[np.ndarray, " e"], start: int) -> None:
        """Takes whole episodes.

        Args:
            values: Of their frames.
            first: The first frame of each, counted in `values`.
            start: Frames of the dataset before these.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            steps = np.diff(values, axis=0, prepend=values[:1])
        steps[first] = 0
        steps[~np.isfinite(steps)] = 0
        sizes = np.abs(steps)
        chosen = slice(None) if self._share == 1 else self._rng.random(len(values)) < self._share
        self._values.append(values[chosen])
        self._steps.append(sizes[chosen])
        kept = min(_LARGEST, len(values))
        rows = np.argpartition(sizes, len(values) - kept, axis=0)[-kept:]
        for dim, largest in enumerate(self._largest):
            for row in rows[:, dim].tolist():
                if sizes[row, dim] > 0:
                    largest.append(
                        _Step(
                            frame=start + row,
                            before=float(values[row - 1, dim]),
                            after=float(values[row, dim]),
                            previous=float(steps[row - 1, dim]),
                            following=float(steps[row + 1, dim]) if row + 1 < len(values) else 0.0,
                        )
                    )
            largest.sort(key=lambda step: -abs(step.after - step.before))
            del largest[_LARGEST:]

    def jumps(self, low: Float32[np.ndarray, " d"], high: Float32[np.ndarray, " d"]) -> tuple[Jump, ...]:
        """The jumps among the largest steps of each dimension, the largest against their pace first.

        Args:
            low: Of the finite values.
            high: Likewise.
        """
        values, steps = np.concatenate(self._values), np.concatenate(self._steps)
        spans = np.where(low <= high, high.astype(np.float64) - low, 0.0)  # 0 where no value is finite
        least = np.maximum(_OF_RANGE * spans, _OF_COLUMN * np.quantile(spans, 0.75))
        found = [
            jump
            for dim in range(len(low))
            if spans[dim] > 0 and not _switches(values[:, dim], low[dim], spans[dim])
            for jump in self._of_dimension(dim, steps[:, dim], float(least[dim]))
        ]
        return tuple(sorted(found, key=lambda jump: -abs(jump.after - jump.before) / jump.typical))

    def _of_dimension(self, dim: int, steps: np.ndarray, least: float) -> list[Jump]:
        moving = np.sort(steps[steps > 0])
        left_out = math.ceil(max(_LEFT_OUT * self._share, 0.001 * len(moving)))
        if len(moving) < _MOVING:
            return []
        typical = float(moving[-1 - left_out])
        return [
            Jump(dim=dim, frame=step.frame, before=step.before, after=step.after, typical=typical)
            for step in self._largest[dim]
            if abs(step.after - step.before) > max(_TIMES * typical, least) and not _in_motion(step)
        ]


def _in_motion(step: _Step) -> bool:
    size = step.after - step.before
    return max(step.previous / size, step.following / size) > _ALONGSIDE


def _switches(values: np.ndarray, low: float, span: float) -> bool:
    """Whether a dimension rests at either end and is seldom between: a gripper, a button, a mode."""
    at_low, at_high = ((values - low) < 0.1 * span).mean(), ((values - low) > 0.9 * span).mean()
    return bool(min(at_low, at_high) > 0.01 and at_low + at_high > 0.8)
