"""What a run says of its steps: a line on the terminal, a record in `metrics.jsonl`, and the same for wandb."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from preflight.runs.protocol import Facts
from preflight.telemetry.sampler import numbers
from preflight.training.clocks import Clock, Clocks
from preflight.training.interval import Fetched, IntervalMetrics
from preflight.training.metrics import metrics_line
from preflight.training.metrics_file import MetricsFile
from preflight.training.progress import Progress
from preflight.training.tracking import Tracker
from preflight.training.watch import Record


class RunLog:
    """Collects each step's metrics on the device, and writes an interval down while the device is at the next step.

    Args:
        facts: The run's.
        metrics: Where records are written.
        clocks: Where the time goes.
        tracker: wandb.
        telemetry: The latest sample, for wandb; filled by the sampler's thread.
        say: Called with each line meant for the terminal.
        compile_s: How long the compilation took, for the first line.
        watch: Called with each interval that was written down.
        progress: The record so far, of a run that is resumed.
        sharding: Where a step's metrics lie.
    """

    def __init__(
        self,
        facts: Facts,
        metrics: MetricsFile,
        *,
        clocks: Clocks,
        tracker: Tracker,
        telemetry: Mapping[str, Any],
        say: Callable[[str], None],
        compile_s: float,
        progress: Progress,
        sharding: jax.sharding.Sharding,
        watch: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._facts, self._metrics = facts, metrics
        self._clocks, self._tracker, self._telemetry, self._say = clocks, tracker, telemetry, say
        self._compile_s, self._watch = compile_s, watch
        before = max(map(len, progress.each.values()), default=0)
        # The interval that goes on may be one of another length.
        self._interval = IntervalMetrics(before + facts.log_interval)
        if before:
            self._interval.load(progress.first_step, progress.each, sharding)
        self._waiting: Fetched | None = None
        self._logged: int | None = None  # the last step that was written down
        self._recorded = False
        self.first_step_s = math.nan
        self.best_loss, self.last_loss = progress.best_loss, progress.last_loss
        # Of the intervals after the first step, without saves.
        self._paced_steps, self._paced_s = 0, 0.0
        self._broken: str | None = None

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes a step's metrics, scalars on the device; waits for nothing."""
        self._interval.add(step, metrics)

    def resumed(self, step: int) -> None:
        """Says that the first step of a resumed run was made; where it ends no interval, it is no record of its own."""
        fetched = self._interval.peek()
        assert fetched is not None
        values = {name: float(each[-1]) for name, each in fetched.each().items()}
        self._say_first(step, values, self._clocks.lap(step))

    def progress(self) -> Progress:
        """What a checkpoint keeps of the record, once all that was closed is written; waits for the steps under way."""
        fetched = self._interval.peek()
        return Progress(
            best_loss=self.best_loss,
            last_loss=self.last_loss,
            first_step=0 if fetched is None else fetched.first_step,
            each={} if fetched is None else {name: each.tolist() for name, each in fetched.each().items()},
        )

    def close_interval(self) -> None:
        """The steps since the last call are to be one record; waits for nothing, `write` writes it."""
        self._waiting = self._interval.fetch()

    def write(self) -> None:
        """Writes down the interval that was closed, if one was; waits for its last step, and for no later one."""
        fetched, self._waiting = self._waiting, None
        if fetched is None:
            return
        values = fetched.reduced(self._facts.gradient_accumulation_steps)
        lap = self._clocks.lap(fetched.last_step)
        self._broken = self._broken or _not_finite(fetched)
        step = fetched.last_step
        record = Record(first_step=fetched.first_step, last_step=step, each=fetched.each())
        if self._logged is None:
            self._say_first(step, values, lap)
        else:
            steps, elapsed = step - self._logged, sum(lap.values()) - lap["checkpoint"]
            self._paced_steps += steps
            self._paced_s += elapsed
            if fetched.first_step > self._logged:  # else it has steps of the run before this one, whose time is unknown
                record = dataclasses.replace(
                    record, elapsed_s=elapsed, data_wait_s=lap["data_wait"], host_s=lap["host"]
                )
            if self._recorded:  # a record without a pace says that a process began: see preflight.report.run_series
                values |= {
                    "efficiency/steps_per_sec": steps / elapsed,
                    "efficiency/samples_per_sec": steps * self._facts.batch_size / elapsed,
                    "efficiency/time_per_step": elapsed / steps,
                    "efficiency/data_wait": lap["data_wait"] / steps,
                }
            self._say(f"Step {step}: {metrics_line(values)} | {steps / elapsed:.2f} steps/s")
        self.last_loss = values["loss"]
        self.best_loss = values["loss"] if math.isnan(self.best_loss) else min(self.best_loss, values["loss"])
        # NaN and infinity are not JSON: written as text, they stay visible.
        written = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        self._metrics.append({"step": step, "time": time.time(), **written})
        self._tracker.log({**values, **numbers(dict(self._telemetry))}, step)
        self._logged, self._recorded = step, True
        self._watch(record)

    def _say_first(self, step: int, values: Mapping[str, float], lap: Mapping[Clock, float]) -> None:
        self.first_step_s, self._logged = lap["step"], step
        compiled = f"compiled in {self._compile_s:.1f} s, first step {lap['step']:.2f} s"
        self._say(f"Step {step}: {metrics_line(values)} | {compiled}")

    def broken(self) -> str | None:
        """Whether a step so far gave what is no finite number, in words; waits for the steps under way.

        A state after such a step is worth nothing: what is not finite spreads to every parameter.
        """
        for fetched in (self._waiting, self._interval.peek()):
            if fetched is not None:
                self._broken = self._broken or _not_finite(fetched)
        return self._broken

    @property
    def steps_per_sec(self) -> float:
        """Over all intervals that were written down, without the first step and without saves; NaN before the first."""
        return self._paced_steps / self._paced_s if self._paced_s else math.nan


def _not_finite(fetched: Fetched) -> str | None:
    found = fetched.not_finite()
    if found is None:
        return None
    step, name = found
    return f"{name} is {fetched.each()[name][step - fetched.first_step]} at step {step}"
