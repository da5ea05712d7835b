"""Why a run is slow: starved by its data, held up by the host, throttled, or a step that takes too long itself."""

from __future__ import annotations

import dataclasses
import statistics
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

from preflight.config.watch_rules import RULES, Rule
from preflight.training.alerts import Alert, alert_of
from preflight.training.forecast import Forecast
from preflight.training.latch import Latch

_SHORT_S = 1.0  # intervals below wait for the next to join them: a run that logs every step must not pay for it
_ORDER = ("slow.throttled", "slow.data", "slow.host", "slow.pace")  # what comes first explains what comes after
# NVML's reasons that are faults of the machine; a cap of power in software is how a GPU under full load is meant to
# run, and an idle GPU lowers its clocks, too.
_FAULTS = ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "reliability")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Interval:
    first_step: int
    last_step: int
    elapsed_s: float
    data_wait_s: float
    host_s: float
    busy: tuple[float, ...]  # per cent of use of the idlest GPU, a value a sample
    faults: tuple[tuple[str, ...], ...]  # the reasons for lowered clocks, a tuple a sample of GPUs


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Span:
    """What a run did over some intervals."""

    window: tuple[int, int]
    pace: float  # steps/s
    data: float  # share of the time
    host: float
    busy: float | None  # per cent, the median: saves and pictures pass by
    faults: tuple[tuple[str, ...], ...]

    @property
    def throttled(self) -> float:
        """The share of samples in which a GPU had lowered its clocks for a fault."""
        return sum(map(bool, self.faults)) / len(self.faults) if self.faults else 0.0


@dataclasses.dataclass(frozen=True)
class _Loss:
    """Time that is lost."""

    level: float  # from 1 on it is worth a word
    share: float  # of the time
    text: str


class Slow:
    """The rules `slow.*`: of them, only the one that explains the others speaks.

    Args:
        rules: Those that are on. One that is off still explains, and is silent.
        forecast: What the checklist foretold.
        gpus: NVML's indices of the GPUs that count.
    """

    def __init__(self, rules: Mapping[str, Rule], forecast: Forecast, gpus: Collection[int]) -> None:
        self._on = rules
        self._rules = {**RULES, **rules}
        self._forecast, self._gpus = forecast, gpus
        self._intervals: deque[_Interval] = deque()
        self._short: _Interval | None = None  # waits for the next
        self._short_s = min(_SHORT_S, *(self._rules[id_]["seconds"] for id_ in _ORDER))
        self._busy: list[float] = []
        self._faults: list[tuple[str, ...]] = []
        self._best = 0.0
        self._latches = {id_: Latch() for id_ in _ORDER}

    def sample(self, sample: Mapping[str, Any]) -> None:
        """Takes a sample of telemetry in."""
        gpus = [gpu for gpu in sample.get("gpus") or () if gpu["index"] in self._gpus]
        used = [gpu["utilization_percent"] for gpu in gpus if gpu["utilization_percent"] is not None]
        if used:
            self._busy.append(float(min(used)))
        known = [gpu["throttle_reasons"] for gpu in gpus if gpu["throttle_reasons"] is not None]
        if known:
            self._faults.append(tuple(sorted({reason for one in known for reason in one if reason in _FAULTS})))

    def look(
        self, first_step: int, last_step: int, elapsed_s: float | None, data_wait_s: float | None, host_s: float | None
    ) -> list[Alert]:
        """Looks at an interval; the first one's samples are those of the compile, and its time is none."""
        busy, faults, self._busy, self._faults = tuple(self._busy), tuple(self._faults), [], []
        if not elapsed_s or elapsed_s <= 0:
            return []
        interval = _Interval(
            first_step=first_step,
            last_step=last_step,
            elapsed_s=elapsed_s,
            data_wait_s=data_wait_s or 0.0,
            host_s=host_s or 0.0,
            busy=busy,
            faults=faults,
        )
        if self._short is not None:
            interval = _joined(self._short, interval)
        self._short = interval if interval.elapsed_s < self._short_s else None
        if self._short is not None:
            return []
        self._intervals.append(interval)
        spans = {id_: self._span(self._rules[id_]) for id_ in self._latches}
        levels = {
            "slow.throttled": self._throttled(spans["slow.throttled"]),
            "slow.data": self._waits(spans["slow.data"], self._rules["slow.data"]),
            "slow.host": self._waits(spans["slow.host"], self._rules["slow.host"]),
            "slow.pace": self._late(spans["slow.pace"]),
        }
        if (span := spans["slow.pace"]) is not None:
            self._best = max(self._best, span.pace)
        self._forget()
        alerts: list[Alert] = []
        explained = False
        for id_, loss in levels.items():
            # What a cause explains is not said again, nor counted as over: that is asked once the cause is gone.
            if explained or loss is None:
                continue
            latch, span = self._latches[id_], spans[id_]
            if latch.speaks(loss.level) and id_ in self._on and span is not None:
                alerts.append(self._alert(self._on[id_], span, loss))
            explained = latch.holds
        return alerts

    def _span(self, rule: Rule) -> _Span | None:
        """The last intervals that fill a rule's window; None where it is not full."""
        steps = seconds = 0.0
        taken: list[_Interval] = []
        for one in reversed(self._intervals):
            taken.append(one)
            steps += one.last_step - one.first_step + 1
            seconds += one.elapsed_s
            if steps >= rule["window"] and seconds >= rule["seconds"]:
                busy = [value for each in taken for value in each.busy]
                return _Span(
                    window=(one.first_step, taken[0].last_step),
                    pace=steps / seconds,
                    data=sum(each.data_wait_s for each in taken) / seconds,
                    host=sum(each.host_s for each in taken) / seconds,
                    busy=statistics.median(busy) if busy else None,
                    faults=tuple(value for each in taken for value in each.faults),
                )
        return None

    def _forget(self) -> None:
        while len(self._intervals) > 1 and all(self._full_without_first(self._rules[id_]) for id_ in self._latches):
            self._intervals.popleft()

    def _full_without_first(self, rule: Rule) -> bool:
        rest = list(self._intervals)[1:]
        steps = sum(one.last_step - one.first_step + 1 for one in rest)
        return steps >= rule["window"] and sum(one.elapsed_s for one in rest) >= rule["seconds"]

    def _throttled(self, span: _Span | None) -> _Loss | None:
        if span is None or not span.faults:
            return None
        reasons = sorted({reason for one in span.faults for reason in one})
        text = f"a GPU's clocks are lowered in {span.throttled:.0%} of the samples ({', '.join(reasons)})"
        return _Loss(_level(span.throttled, self._rules["slow.throttled"]["share"]), span.throttled, text)

    def _waits(self, span: _Span | None, rule: Rule) -> _Loss | None:
        """Whether the data or the host holds the run up: by itself, or as the larger part of what is lost."""
        if span is None:
            return None
        data = rule.id == "slow.data"
        share, other = (span.data, span.host) if data else (span.host, span.data)
        what = "steps wait for their batch" if data else "the host's own work holds the device up"
        own = _Loss(_level(share, rule["share"]), share, f"{what} {share:.0%} of the time")
        lost = []
        late = self._late(span)
        if late is not None and share >= late.share / 2 and share >= other:
            lost.append(dataclasses.replace(late, text=f"{late.text}, as {own.text}"))
        if span.busy is not None and rule["busy"] > 0:
            missing = (100 - span.busy) / 100
            idle = f"a GPU is in use {span.busy:.0f} % of the time"
            # 10 % of idleness are as many as 90 % of use allow.
            level = _level(missing, (100 - rule["busy"]) / 100)
            explains = share >= missing / 2 and share >= other
            if data and explains:
                lost.append(_Loss(level, missing, f"{idle}, and {own.text}"))
            elif not data and (explains or span.data < missing / 2):
                why = f"and {own.text}" if explains else "and steps wait for data only " + f"{span.data:.0%} of it"
                lost.append(_Loss(level, missing, f"{idle}, {why}"))
        return max((own, *lost), key=lambda loss: loss.level)

    def _late(self, span: _Span | None) -> _Loss | None:
        """Whether the pace is below the forecast, or below what it was."""
        if span is None:
            return None
        rule, found = self._rules["slow.pace"], []
        if (foretold := self._forecast.steps_per_sec) is not None:
            short = 1 - span.pace / foretold[0]
            text = f"{span.pace:.3g} steps/s, and the checklist foretold {foretold[0]:.3g} to {foretold[1]:.3g}"
            found.append(_Loss(_level(short, rule["share"]), short, text))
        if self._best > 0:
            short = 1 - span.pace / self._best
            text = f"{span.pace:.3g} steps/s, and it was {self._best:.3g}"
            found.append(_Loss(_level(short, rule["drop"]), short, text))
        return max(found, key=lambda loss: loss.level, default=None)

    def _alert(self, rule: Rule, span: _Span, loss: _Loss) -> Alert:
        foretold = self._forecast.data_wait
        text = loss.text
        if rule.id == "slow.data" and foretold is not None:
            text += f" (the checklist foretold at most {foretold[1]:.0%})"
        if rule.id == "slow.pace":
            text += f"; steps wait for data {span.data:.0%} of the time, for the host {span.host:.0%}"
        return alert_of(
            rule, span.window[1], span.window, text,
            steps_per_sec=span.pace, data_wait_share=span.data, host_share=span.host, gpu_utilization_percent=span.busy,
            throttled_share=span.throttled if span.faults else None,
        )  # fmt: skip


def _joined(first: _Interval, second: _Interval) -> _Interval:
    return _Interval(
        first_step=first.first_step,
        last_step=second.last_step,
        elapsed_s=first.elapsed_s + second.elapsed_s,
        data_wait_s=first.data_wait_s + second.data_wait_s,
        host_s=first.host_s + second.host_s,
        busy=first.busy + second.busy,
        faults=first.faults + second.faults,
    )


def _level(value: float, limit: float) -> float:
    return value / max(limit, 1e-9)  # a limit may be zero: 100 % of use allow no idleness
