"""The lines of a run's metrics and telemetry as columns: a week's lines, kept as objects, would take gigabytes."""

from __future__ import annotations

import bisect
import dataclasses
import math
from array import array
from typing import Any

from preflight.telemetry.sampler import numbers

# What a line has beside the metrics of its step.
_NO_METRICS = ("step", "time")
# The first line of each start has no pace: it contains the compile.
_PACE = "efficiency/steps_per_sec"


@dataclasses.dataclass
class Series:
    """Values over steps or times, which ascend."""

    x: array[float] = dataclasses.field(default_factory=lambda: array("d"))
    y: array[float] = dataclasses.field(default_factory=lambda: array("d"))

    def add(self, x: float, y: float) -> None:
        """Appends a point."""
        self.x.append(x)
        self.y.append(y)

    def drop_from(self, x: float) -> None:
        """Drops what lies at or beyond x."""
        place = bisect.bisect_left(self.x, x)
        del self.x[place:], self.y[place:]

    def finite(self) -> list[float]:
        """The values that are numbers."""
        return [y for y in self.y if math.isfinite(y)]


@dataclasses.dataclass
class Metrics:
    """`metrics.jsonl`: a series over the steps for each name."""

    times: Series = dataclasses.field(default_factory=Series)  # Unix seconds of each line
    series: dict[str, Series] = dataclasses.field(default_factory=dict)
    unpaced: list[float] = dataclasses.field(default_factory=list)  # steps logged without a pace
    repeated: list[float] = dataclasses.field(default_factory=list)  # steps that the file goes back to

    def add(self, line: dict[str, Any]) -> bool:
        """Takes a line in; False where it holds no step."""
        step = line.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 53:
            return False
        values = {k: v for k, raw in line.items() if k not in _NO_METRICS and (v := number(raw)) is not None}
        if self.times.x and step <= self.times.x[-1]:
            # A resumed run makes the steps beyond its checkpoint anew: the later ones count.
            self.repeated.append(step)
            for one in (self.times, *self.series.values()):
                one.drop_from(step)
            self.unpaced = [start for start in self.unpaced if start < step]
        time = number(line.get("time"))
        self.times.add(step, math.nan if time is None or math.isinf(time) else time)
        for name, value in values.items():
            self.series.setdefault(name, Series()).add(step, value)
        if _PACE not in values:
            self.unpaced.append(step)
        return True

    @property
    def starts(self) -> list[float]:
        """The steps that a process began with."""
        return self.unpaced if _PACE in self.series else list(self.times.x[:1])

    def of(self, name: str) -> Series:
        """A metric's series; an empty one where it was never logged."""
        return self.series.get(name) or Series()


@dataclasses.dataclass
class Telemetry:
    """`telemetry.jsonl`: a series over the time for each number of a sample, named as in `workers/pss_bytes`."""

    times: array[float] = dataclasses.field(default_factory=lambda: array("d"))
    series: dict[str, Series] = dataclasses.field(default_factory=dict)
    starts: list[float] = dataclasses.field(default_factory=list)  # times of each sampler's first sample

    def add(self, line: dict[str, Any]) -> bool:
        """Takes a sample in; False where it is none."""
        time = number(line.get("time"))
        if time is None or not math.isfinite(time):
            return False
        try:
            found = {name: float(value) for name, value in numbers(line, "").items()}
        except (TypeError, KeyError, AttributeError, OverflowError):
            return False
        # A clock that is set back must not make a curve run backwards.
        time = max(time, self.times[-1]) if self.times else time
        self.times.append(time)
        for name, value in found.items():
            self.series.setdefault(name.removeprefix("/"), Series()).add(time, value)
        if line.get("interval_s") is None:
            self.starts.append(time)
        return True

    def of(self, name: str) -> Series:
        """A series; an empty one where it was never read."""
        return self.series.get(name) or Series()

    def gpus(self) -> list[str]:
        """The indices of the GPUs that told anything."""
        found = {name.split("/")[1] for name in self.series if name.startswith("gpus/")}
        return sorted(found, key=lambda index: (len(index), index))


def number(value: Any) -> float | None:
    """A number as JSON lines hold it, NaN and infinity as text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.copysign(math.inf, value)
    if isinstance(value, str) and value.strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return float(value)
    return None
