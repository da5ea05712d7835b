"""Where the time of a run goes: each moment belongs to one clock, and none of them stalls the device."""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Literal

import jax

Clock = Literal["start", "compile", "step", "data_wait", "host", "checkpoint"]
CLOCKS: tuple[Clock, ...] = ("start", "compile", "step", "data_wait", "host", "checkpoint")


class Clocks:
    """Clocks of which exactly one runs at any moment.

    While the device works on a step it is `step`, whatever the host does meanwhile: a batch that is loaded, or a line
    that is written, in the shadow of a step costs nothing. While the device has nothing to do, it is the clock of what
    the host is busy with: `start`, `compile`, `data_wait`, `checkpoint`, or `host` for all the rest. The share of
    `step` is the goodput.

    When a step is finished is seen by a thread that blocks on its results, so that the host neither waits nor polls.

    Args:
        now: Monotonic seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._seconds: dict[Clock, float] = dict.fromkeys(CLOCKS, 0.0)
        self._upto = now()  # all before is on the clocks
        # What the host does, from when on; the last one holds now.
        self._since: list[float] = [self._upto]
        self._activity: list[Clock] = ["host"]
        self._begun: deque[tuple[int, float]] = deque()  # steps that were dispatched and are not on the clocks
        self._finished: dict[int, float] = {}
        self._last_finished: tuple[int, float] | None = None
        self._change = threading.Condition()
        self._dispatched: SimpleQueue[tuple[int, Any] | None] = SimpleQueue()
        self._lapped = dict(self._seconds)
        threading.Thread(target=self._watch, name="clocks", daemon=True).start()

    @contextlib.contextmanager
    def on(self, clock: Clock) -> Iterator[None]:
        """The host is busy with this; may be nested."""
        before = self._activity[-1]
        self._mark(clock)
        try:
            yield
        finally:
            self._mark(before)

    def dispatched(self, step: int, began: float, results: Any) -> None:
        """A step was handed to the device.

        Args:
            step: The one after the step that was dispatched last.
            began: `perf_counter` before the call.
            results: Arrays of the step that are not donated to another one.
        """
        self._begun.append((step, began))
        self._dispatched.put((step, results))

    def lap(self, step: int) -> dict[Clock, float]:
        """The seconds on each clock since the step of the last lap (or the start) until this step was finished.

        Waits for that step, and for no later one.

        Args:
            step: A step that was dispatched, later than the last lap's.
        """
        while self._begun and self._begun[0][0] <= step:
            number, began = self._begun.popleft()
            self._count(began, self._finish_of(number))
        lap = {name: self._seconds[name] - self._lapped[name] for name in CLOCKS}
        self._lapped = dict(self._seconds)
        return lap

    def seconds(self) -> dict[Clock, float]:
        """The seconds on each clock until now, a step that is under way included; waits for nothing."""
        now = self._now()
        counted = dict(self._seconds)
        upto = self._upto
        for number, began in self._begun:
            with self._change:
                end = min(self._finished.get(number, now), now)
            upto = self._add(counted, upto, began, end)
        self._add_idle(counted, upto, now)
        return counted

    def last_finished(self) -> tuple[int, float] | None:
        """The last step that the device finished, and when, for any thread that watches for a step that hangs."""
        with self._change:
            return self._last_finished

    def close(self) -> None:
        """Ends the thread once the steps under way are finished; does not wait for it."""
        self._dispatched.put(None)

    def _mark(self, clock: Clock) -> None:
        self._since.append(self._now())
        self._activity.append(clock)

    def _watch(self) -> None:
        while (item := self._dispatched.get()) is not None:
            step, results = item
            with contextlib.suppress(Exception):  # whoever fetches the results is told
                jax.block_until_ready(results)
            del item, results
            with self._change:
                self._finished[step] = self._now()
                self._last_finished = step, self._finished[step]
                self._change.notify_all()

    def _finish_of(self, step: int) -> float:
        with self._change:
            self._change.wait_for(lambda: step in self._finished)
            return self._finished.pop(step)

    def _count(self, began: float, finished: float) -> None:
        self._upto = self._add(self._seconds, self._upto, began, finished)
        # What the host did before is not asked for again.
        past = bisect.bisect_right(self._since, self._upto) - 1
        del self._since[:past], self._activity[:past]

    def _add(self, seconds: dict[Clock, float], upto: float, began: float, finished: float) -> float:
        self._add_idle(seconds, upto, began)
        busy_since = max(began, upto)
        seconds["step"] += max(0.0, finished - busy_since)
        return max(finished, busy_since)

    def _add_idle(self, seconds: dict[Clock, float], begin: float, end: float) -> None:
        if end <= begin:
            return
        first = max(0, bisect.bisect_right(self._since, begin) - 1)
        for place in range(first, len(self._since)):
            since = max(begin, self._since[place])
            until = min(end, self._since[place + 1]) if place + 1 < len(self._since) else end
            if until > since:
                seconds[self._activity[place]] += until - since
