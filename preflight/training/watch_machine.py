"""What the watch sees in the samples of telemetry: RAM and disk that will not last."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from typing import Any

from preflight.config.watch_rules import Rule
from preflight.telemetry.growth import Growth, growth
from preflight.training.alerts import Alert, alert_of
from preflight.training.latch import Latch

_GIB, _MIB = 2**30, 2**20
_POINTS = 200  # that a window keeps: enough for a slope, and no more work as a run grows long
_SPANS = 4  # a window is so many times as long as the least time that is looked at
_STEADY = 0.25  # of the mean growth of a quarter, what each of them must show: a single step up is no leak
_FELL = 0.1  # memory that falls by so much at once is that of workers that were started anew


class Leaving:
    """The last while of a value, and how fast it grows.

    Args:
        least_s: How long it must have been seen.
    """

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self._points: deque[tuple[float, float]] = deque()

    def add(self, time_s: float, value: float) -> None:
        """Takes a value in; those that come thicker than needed are left out."""
        if self._points and not time_s - self._points[-1][0] >= 0:
            self._points.clear()  # a clock that was set back
        if self._points and time_s - self._points[-1][0] < self._least_s / (_POINTS / _SPANS):
            return
        self._points.append((time_s, value))
        while time_s - self._points[0][0] > _SPANS * self._least_s:
            self._points.popleft()

    def last(self) -> float | None:
        """The value taken in last."""
        return self._points[-1][1] if self._points else None

    def clear(self) -> None:
        """Begins anew."""
        self._points.clear()

    def growth(self) -> Growth | None:
        """Per second; None where it was not seen for long enough, or does not grow in each quarter of the time."""
        if not self._points or self._points[-1][0] - self._points[0][0] < self._least_s:
            return None
        begin, end = self._points[0][0], self._points[-1][0]
        marks = [begin + (end - begin) * n / 4 for n in range(5)]
        at = [min(self._points, key=lambda point: abs(point[0] - mark))[1] for mark in marks]
        steps = [later - earlier for earlier, later in itertools.pairwise(at)]
        mean = sum(steps) / len(steps)
        if mean <= 0 or min(steps) < _STEADY * mean:
            return None
        times, values = zip(*self._points, strict=True)
        found = growth([(times, values)])
        return found if found is not None and found.ci95[0] > 0 else None


class Runout:
    """Something that runs out: `memory.workers` and `disk.filling`.

    Args:
        rule: With `seconds` and `hours`.
        what: For the message, with {rate} and {left}.
    """

    def __init__(self, rule: Rule, what: str) -> None:
        self._rule, self._what = rule, what
        self.series = Leaving(rule["seconds"])
        self._latch = Latch()

    def look(self, room_bytes: float, step: int, remaining_s: float | None) -> list[Alert]:
        """Whether the room will be gone before the run ends.

        Args:
            room_bytes: What is left.
            step: The last that was logged.
            remaining_s: Until the run ends; None where that is not known.
        """
        found = self.series.growth()
        if found is None:
            self._latch.speaks(0.0)
            return []
        left_s, early_s, late_s = (room_bytes / rate for rate in (found.slope, found.ci95[1], found.ci95[0]))
        level = self._rule["hours"] * 3600 / max(left_s, 1e-9)
        if remaining_s is not None and early_s > remaining_s:
            level = min(level, 0.9)
        if not self._latch.speaks(level):
            return []
        message = self._what.format(
            rate=f"{found.slope * 60 / _MIB:.3g} MiB a minute",
            left=f"{_hours(left_s)} ({_hours(early_s)} to {_hours(late_s)}, 95 %)",
            room=f"{room_bytes / _GIB:.3g} GiB",
        )
        return [
            alert_of(
                self._rule, step, None, message,
                bytes_per_s=found.slope, ci95=list(found.ci95), room_bytes=room_bytes, left_s=left_s,
                left_s_ci95=[early_s, late_s],
            )
        ]  # fmt: skip


class Machine:
    """`memory.workers`, `disk.space` and `disk.filling`.

    Args:
        rules: Those that are on.
        checkpoint_bytes: A checkpoint's size, where it is known.
    """

    def __init__(self, rules: Mapping[str, Rule], checkpoint_bytes: float | None) -> None:
        self.checkpoint_bytes = checkpoint_bytes
        memory, filling = rules.get("memory.workers"), rules.get("disk.filling")
        self._memory = memory and Runout(
            memory, "the workers' RAM grows by {rate}; the {room} that are left last for {left}"
        )
        self._filling = filling and Runout(
            filling, "the disk fills by {rate}; the {room} that are free last for {left}"
        )
        self._space = rules.get("disk.space")
        self._free: deque[tuple[float, float]] = deque()
        self._latch = Latch()

    def sample(self, sample: Mapping[str, Any], step: int, remaining_s: float | None) -> list[Alert]:
        """Looks at a sample, during the steps."""
        time_s = float(sample["time"])
        alerts: list[Alert] = []
        workers = (sample.get("workers") or {}).get("pss_bytes")
        host = (sample.get("host_memory") or {}).get("available_bytes")
        if self._memory and workers is not None and host is not None:
            before = self._memory.series.last()
            if before is not None and workers < (1 - _FELL) * before:
                self._memory.series.clear()
            self._memory.series.add(time_s, float(workers))
            alerts += self._memory.look(float(host), step, remaining_s)
        free = (sample.get("disk") or {}).get("free_bytes")
        if free is not None:
            if self._filling:
                self._filling.series.add(time_s, -float(free))
                alerts += self._filling.look(float(free), step, remaining_s)
            alerts += self._room(time_s, float(free), step)
        return alerts

    def _room(self, time_s: float, free: float, step: int) -> list[Alert]:
        rule = self._space
        if rule is None:
            return []
        self._free.append((time_s, free))
        while len(self._free) > 1 and not 0 <= time_s - self._free[0][0] <= rule["seconds"]:
            self._free.popleft()
        size = self.checkpoint_bytes
        needed = rule["gib"] * _GIB if size is None else rule["saves"] * size
        # The most that was free: while a save is under way, or an older one not yet deleted, less is.
        most = max(bytes_ for _, bytes_ in self._free)
        if not self._latch.speaks(needed / max(most, 1.0)):
            return []
        room = f"{most / _GIB:.3g} GiB are free"
        takes = "" if size is None else f", and a checkpoint takes {size / _GIB:.3g} GiB"
        return [alert_of(rule, step, None, f"{room}{takes}", free_bytes=most, checkpoint_bytes=size)]


def _hours(seconds: float) -> str:
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 1e6 else f"{seconds / 86400:.0f} days"
