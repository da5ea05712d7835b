"""What the watch sees in the metrics of each step."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from preflight.config.watch_rules import Rule
from preflight.report.run_trend import falling
from preflight.training.alerts import Alert, alert_of
from preflight.training.latch import StepWindow

Each = Mapping[str, np.ndarray]  # every step's values by metric, float64[steps]

_OF_THE_LOSS = ("loss", "loss_std", "loss_max", "loss_min")
_OF_THE_GRADIENT = (
    "grad_norm", "grad_max", "grad_mean", "update_norm", "update_ratio", "param_norm", "ema_distance",
)  # fmt: skip


class NotFinite:
    """`loss.finite` and `grad.finite`: of the two, the one that went first; with the loss the gradient goes as well.

    Args:
        rules: Those that are on.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        self._holds = False

    def look(self, first_step: int, each: Each) -> list[Alert]:
        """Looks at the steps of an interval."""
        found = [
            (int(np.flatnonzero(~np.isfinite(each[name]))[0]), order, name)
            for order, name in enumerate((*_OF_THE_LOSS, *_OF_THE_GRADIENT))
            if name in each and not np.isfinite(each[name]).all()
        ]
        before, self._holds = self._holds, bool(found)
        if before or not found:
            return []
        place, _, name = min(found)
        rule = self._rules.get("loss.finite" if name in _OF_THE_LOSS else "grad.finite")
        if rule is None:
            return []
        step, last = first_step + place, first_step + len(each[name]) - 1
        value = each[name][place]
        became = "NaN" if np.isnan(value) else "infinite"
        # The step's own update carries it into the parameters, so that those before it are the last good ones.
        good = step - 1 if step else None
        kept = "no parameters before it" if good is None else f"the parameters are good up to step {good}"
        message = f"{name} became {became} at step {step}; {kept}"
        return [alert_of(rule, last, (step, last), message, metric=name, first_bad_step=step, last_good_step=good)]


class OutOfRange:
    """A metric that leaves its range at many steps of a window.

    Args:
        rule: With `high`, perhaps `low`; and `window`, `share` and `after`, or `steps` and `share` for the run's first.
        metric: Its name.
        accumulation_steps: Only steps n that are updates are looked at: where this divides n + 1.
    """

    def __init__(self, rule: Rule, metric: str, accumulation_steps: int = 1) -> None:
        self._rule, self._metric, self._every = rule, metric, accumulation_steps
        limits = rule.limits
        self._low = rule["low"] if "low" in limits else -np.inf
        self._high = rule["high"]
        self._after = rule["after"] if "after" in limits else 0
        self._until = rule["steps"] if "steps" in limits else np.inf
        window = rule["steps" if "steps" in limits else "window"]
        self._window = StepWindow(window, rule["share"] / accumulation_steps)
        self._seen: dict[int, float] = {}  # the window's values that are out of range

    def look(self, first_step: int, each: Each) -> list[Alert]:
        """Looks at the steps of an interval."""
        values = each.get(self._metric, np.empty(0))
        steps = np.arange(first_step, first_step + len(values))
        looked_at = (self._after <= steps) & (steps < self._until) & ((steps + 1) % self._every == 0)
        # What is not finite is another rule's.
        out = looked_at & np.isfinite(values) & ((values < self._low) | (values > self._high))
        alerts: list[Alert] = []
        if not out.any() and not self._window.steps:
            return alerts  # as nearly always: nothing to count, and nothing to forget
        for place in np.flatnonzero(looked_at):
            step = int(steps[place])
            speaks = self._window.add(step, bool(out[place]))
            self._seen = {bad: self._seen.get(bad, float(values[place])) for bad in self._window.steps}
            if speaks:
                alerts.append(self._alert(step))
        return alerts

    def _alert(self, step: int) -> Alert:
        values = list(self._seen.values())
        worst = max(values) if max(values) > self._high else min(values)
        range_ = f"above {self._high:g}" if np.isneginf(self._low) else f"outside {self._low:g} … {self._high:g}"
        steps = self._window.steps
        what = "step" if self._every == 1 else "update"
        message = (
            f"{self._metric} was {range_} at {len(values)} {what}s from step {steps[0]} to {steps[-1]}; "
            f"{worst:.4g} at worst, {statistics.median(values):.4g} in the middle"
        )
        return alert_of(
            self._rule, step, (steps[0], steps[-1]), message,
            steps=len(values), worst=worst, median=statistics.median(values),
        )  # fmt: skip


class Trend:
    """`loss.trend`: whether the loss has fallen by some step.

    Args:
        rule: With `after`.
        losses: Those that were logged before, from step 0 on.
        start: The first step of this process.
    """

    def __init__(self, rule: Rule, losses: Sequence[float], start: int) -> None:
        self._rule = rule
        self._losses = [loss for loss in losses if np.isfinite(loss)]
        # A curve whose beginning is not known may have fallen there, and lie flat since.
        self._done = start > 0 and (not self._losses or start >= rule["after"])

    def look(self, first_step: int, each: Each) -> list[Alert]:
        """Looks at the steps of an interval."""
        loss = each.get("loss", np.empty(0))
        last = first_step + len(loss) - 1
        if self._done or not len(loss):
            return []
        if np.isfinite(loss).all():
            self._losses.append(float(np.mean(loss)))
        found = falling(self._losses) if last >= self._rule["after"] else None
        if found is None:
            return []
        self._done = True
        if found.falls:
            return []
        message = (
            f"the loss has not fallen by step {last}: median {found.first:.4g} in the first quarter, {found.last:.4g} "
            f"in the last; Kendall's tau {found.tau:+.2f} over {found.blocks} block medians"
        )
        return [alert_of(self._rule, last, (0, last), message, first=found.first, last=found.last, tau=found.tau)]


class Rising:
    """`loss.rising`: a loss that had been much lower.

    Args:
        rule: With `steps`, the length of the stretches that are compared, and `factor`.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._stretch: list[float] = []
        self._lowest = np.inf
        self._lowest_at = 0
        self._holds = False

    def look(self, first_step: int, each: Each) -> list[Alert]:
        """Looks at the steps of an interval."""
        alerts = []
        for step, loss in enumerate(each.get("loss", ()), start=first_step):
            self._stretch.append(float(loss))
            if len(self._stretch) < self._rule["steps"]:
                continue
            median = statistics.median(self._stretch)
            begin = step + 1 - len(self._stretch)
            self._stretch = []
            rose = median > self._rule["factor"] * self._lowest
            if rose and not self._holds:
                message = (
                    f"the median loss of steps {begin} to {step} is {median:.4g}; it was {self._lowest:.4g} around "
                    f"step {self._lowest_at}"
                )
                alerts.append(alert_of(self._rule, step, (begin, step), message, median=median, lowest=self._lowest))
            self._holds = rose
            if median < self._lowest:
                self._lowest, self._lowest_at = median, (begin + step) // 2
        return alerts
