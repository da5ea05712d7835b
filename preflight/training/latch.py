"""When the watch speaks: once when something holds, and anew only after it was well."""

from __future__ import annotations

from collections import deque


class Latch:
    """Answers once when a level reaches 1, and anew only after it was down at one half."""

    def __init__(self) -> None:
        self.holds = False

    def speaks(self, level: float) -> bool:
        """Whether this level is worth a word; NaN is none."""
        before = self.holds
        if level >= 1:
            self.holds = True
        elif level <= 0.5:
            self.holds = False
        return self.holds and not before


class StepWindow:
    """Counts the last steps of which something is true.

    Args:
        window: How many of the last steps are looked at.
        share: Of them, how many make it speak; the first steps of a run count as well, before the window is full.
    """

    def __init__(self, window: int | float, share: int | float) -> None:
        self._bad: deque[int] = deque()
        self._window = int(window)
        self._enough = max(1.0, share * window)
        self._latch = Latch()

    def add(self, step: int, bad: bool) -> bool:
        """Takes a step in; whether it is time to speak."""
        if bad:
            self._bad.append(step)
        while self._bad and self._bad[0] <= step - self._window:
            self._bad.popleft()
        return self._latch.speaks(len(self._bad) / self._enough)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the window of which it is true."""
        return tuple(self._bad)
