"""The watch over a run: says early when something is off, once, and what to do about it.

    watch = Watch(project.watch, Forecast.read(clearance, facts.settings), num_train_steps=facts.num_train_steps,
                  accumulation_steps=facts.gradient_accumulation_steps)
    with HangWatch(project.watch, on_alert=..., worker_stacks=loader.worker_stacks) as hang:     # training/hang.py
        ...
        hang.beat(step)                                   # after each step
        alerts = watch.look(Record(...))                  # at each log step, before it is saved
        alerts = watch.sample(telemetry_sample)           # as `on_sample` of the telemetry writer, in its thread
        with hang.busy(f"checkpoint {step}"): ...         # around what may take long and is no step
        watch.saved(size_bytes)                           # once a checkpoint's size is known

`look`, `sample` and `saved` may be called from different threads. `HangWatch` calls `on_alert` from its own thread,
since the one that trains stands still. Each gives `Alert`s (training/alerts.py), which go to `alerts.jsonl`
(`AlertLog`), to the terminal (`str(alert)`) and to wandb. One of severity "stop" ends the run (exit code 5): it is the
caller that ends it, and where the rule is `loss.finite` or `grad.finite` the state is not to be saved;
`measured["last_good_step"]` is the last step after which the parameters were finite.

A rule speaks when its condition holds over a window, not again while it goes on holding, and anew only after it was
well: see `preflight.config.watch_rules.RULES` and `[tool.preflight.watch]` in docs/watch.md.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from preflight.config.watch import WatchSettings
from preflight.training.alerts import Alert
from preflight.training.forecast import Forecast
from preflight.training.own_gpus import own_gpus
from preflight.training.watch_machine import Machine
from preflight.training.watch_metrics import NotFinite, OutOfRange, Rising, Trend
from preflight.training.watch_slow import Slow

_RANGES = {"grad.max": "grad_max", "grad.norm": "grad_norm", "update.ratio": "update_ratio", "loss.range": "loss"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What a log step knows of its interval."""

    first_step: int
    last_step: int
    each: Mapping[str, np.ndarray]  # every step's values by metric, float64[steps]: `Fetched.each()`
    # Of the interval, in seconds; None where it contains the first step, whose compile would count.
    elapsed_s: float | None = None  # of the steps, without checkpoints and pictures
    data_wait_s: float | None = None  # of it, the device waiting for a batch
    host_s: float | None = None  # of it, the device waiting for the host's own work


class Watch:
    """See the module.

    Args:
        settings: The rules that are on, and their limits.
        forecast: What the checklist foretold.
        num_train_steps: The run's length.
        accumulation_steps: Step n is an update where this divides n + 1.
        gpus: NVML's indices of the GPUs that this run computes on; where it is None, JAX and CUDA_VISIBLE_DEVICES are
            asked.
        losses: Those that were logged before, of a run that is resumed, from step 0 on; without them a resumed run's
            trend is not judged.
        start: The first step that this process makes.
    """

    def __init__(
        self,
        settings: WatchSettings | None = None,
        forecast: Forecast | None = None,
        *,
        num_train_steps: int,
        accumulation_steps: int = 1,
        gpus: Collection[int] | None = None,
        losses: Sequence[float] = (),
        start: int = 0,
    ) -> None:
        rules = (settings or WatchSettings()).rules
        forecast = forecast or Forecast()
        self._num_train_steps = num_train_steps
        self._lock = threading.Lock()
        self._not_finite = NotFinite(rules)
        self._in_steps: list[OutOfRange | Trend | Rising] = [
            OutOfRange(rules[id_], metric, accumulation_steps if id_ == "update.ratio" else 1)
            for id_, metric in _RANGES.items()
            if id_ in rules
        ]
        if "loss.trend" in rules:
            self._in_steps.append(Trend(rules["loss.trend"], losses, start))
        if "loss.rising" in rules:
            self._in_steps.append(Rising(rules["loss.rising"]))
        self._slow = Slow(rules, forecast, own_gpus() if gpus is None else gpus)
        self._machine = Machine(rules, forecast.checkpoint_bytes)
        self._step: int | None = None  # the last that was logged
        self._steps = self._seconds = 0.0  # those that were timed

    def look(self, record: Record) -> list[Alert]:
        """Looks at a log step."""
        with self._lock:
            self._step = record.last_step
            if record.elapsed_s:
                self._steps += record.last_step - record.first_step + 1
                self._seconds += record.elapsed_s
            alerts = self._not_finite.look(record.first_step, record.each)
            for one in self._in_steps:
                alerts += one.look(record.first_step, record.each)
            return alerts + self._slow.look(
                record.first_step, record.last_step, record.elapsed_s, record.data_wait_s, record.host_s
            )

    def sample(self, sample: Mapping[str, Any]) -> list[Alert]:
        """Looks at a sample of telemetry, as `TelemetrySampler.sample` gives it; before the first step at none."""
        with self._lock:
            if self._step is None:
                return []
            self._slow.sample(sample)
            return self._machine.sample(sample, self._step, self._remaining_s(self._step))

    def saved(self, size_bytes: int) -> None:
        """Tells how large a checkpoint came out."""
        with self._lock:
            self._machine.checkpoint_bytes = float(size_bytes)

    def _remaining_s(self, step: int) -> float | None:
        if not self._steps:
            return None
        return (self._num_train_steps - 1 - step) * self._seconds / self._steps
