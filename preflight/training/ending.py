"""However a run ends: its summary, its report and wandb's last words, none of which can make it fail."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Any

import psutil

from preflight.errors import PreflightError, UsageError
from preflight.runs import Facts
from preflight.training.alerting import Alerting
from preflight.training.alerts import Alert
from preflight.training.clocks import Clocks
from preflight.training.folder import checkpoint_bytes, saved_steps
from preflight.training.folder_lock import locked
from preflight.training.progress import Progress, read_progress
from preflight.training.run_log import RunLog
from preflight.training.summary import Exit, Summary, device_peak_bytes, last_exit, write_summary
from preflight.training.tracking import Tracker
from preflight.training.watch import Record, Watch

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Flight:
    """What is known of a run while it goes on."""

    folder: Path
    batch_size: int
    clocks: Clocks = field(default_factory=Clocks)
    begun: bool = False  # whether the folder is this run's
    steps: int = 0  # made by this process
    compile_s: float = math.nan
    telemetry: dict[str, Any] = field(default_factory=dict)  # the latest sample
    progress: Progress = field(default_factory=Progress)  # of the record, before there is a log
    log: RunLog | None = None
    tracker: Tracker = field(default_factory=lambda: Tracker(None))
    wandb_mode: str = "disabled"
    camera_views: list[Path] = field(default_factory=list)
    exit: Exit = "completed"
    reason: str | None = None
    watch: Watch | None = None  # once there is something to watch
    alerting: Alerting | None = None
    summary: Summary | None = None  # once it has ended

    def ends(self, how: Exit, reason: str) -> None:
        """Says that, and why, the run ends before its last step."""
        self.exit, self.reason = how, reason

    def stopped(self, alert: Alert) -> None:
        """Says that the watch ends the run."""
        self.ends("stopped", f"{alert.rule}: {alert.message}")

    def sampled(self, sample: dict[str, Any]) -> None:
        """Takes a sample of telemetry, in the sampler's thread."""
        self.telemetry.update(sample)
        if self.watch is not None and self.alerting is not None:
            for alert in self.watch.sample(sample):
                self.alerting.tell(alert)

    def looked(self, record: Record) -> None:
        """Takes an interval that was written down."""
        if self.watch is not None and self.alerting is not None:
            for alert in self.watch.look(record):
                self.alerting.tell(alert)

    def saved(self, step: int) -> None:
        """Takes a checkpoint that was saved."""
        if self.watch is not None:
            self.watch.saved(checkpoint_bytes(self.folder, step))

    def _summary(self) -> Summary:
        log = self.log
        losses = self.progress if log is None else log
        steps_per_sec = math.nan if log is None else log.steps_per_sec
        return Summary(
            folder=self.folder,
            exit=self.exit,
            reason=self.reason,
            steps=self.steps,
            clocks=self.clocks.seconds(),
            compile_s=self.compile_s,
            first_step_s=math.nan if log is None else log.first_step_s,
            steps_per_sec=steps_per_sec,
            samples_per_sec=steps_per_sec * self.batch_size,
            best_loss=losses.best_loss,
            last_loss=losses.last_loss,
            checkpoints=tuple(saved_steps(self.folder)),
            camera_views=tuple(self.camera_views),
            device_peak_bytes=device_peak_bytes(),
            wandb_mode=self.wandb_mode,
            wandb_sync=self.tracker.sync_command(),
        )


@contextlib.contextmanager
def ending(flight: Flight, report: Callable[[Path], Path] | None, on_end: Callable[[Summary], None]) -> Iterator[None]:
    """Writes the summary and the report of what happens inside, and ends wandb, once the run's folder is its own.

    What is raised inside is raised on.

    Args:
        flight: Told of what happens; has the `summary` afterwards.
        report: Makes the report of a folder; None for none. After a second signal, none is made.
        on_end: Told the summary, before wandb has its last words.
    """
    at_once = False
    try:
        yield
    except KeyboardInterrupt:
        at_once = True
        flight.ends("interrupted", "by a second signal, at once: nothing was saved for it")
        raise
    except BaseException as error:
        flight.ends("failed", _words(error))
        raise
    finally:
        if flight.begun:
            summary = flight._summary()
            write_summary(summary)
            if report is not None and not at_once:
                summary = dataclasses.replace(summary, report=_reported(flight.folder, report))
            flight.summary = summary
            on_end(summary)
            if not at_once:
                flight.tracker.finish()


def end_of(
    folder: Path,
    facts: Facts,
    report: Callable[[Path], Path] | None,
    on_end: Callable[[Summary], None],
    say: Callable[[str], None],
) -> Summary:
    """The end of a run that has made all its steps, and was killed before its summary was written.

    Raises:
        UsageError: It was not.
    """
    step = saved_steps(folder)[-1]
    if last_exit(folder) == "completed":
        raise UsageError(
            f"{folder.name} is complete: {step + 1} of {facts.num_train_steps} steps are done",
            "train longer with --set num_train_steps=N",
        )
    say(f"{folder.name} has made all its steps, and was killed before its summary was written")
    flight = Flight(folder=folder, batch_size=facts.batch_size, progress=read_progress(folder / str(step)))
    flight.clocks.close()
    with locked(folder), ending(flight, report, on_end):
        flight.begun = True
    assert flight.summary is not None
    return flight.summary


def abandon(
    flight: Flight, report: Callable[[Path], Path] | None, on_end: Callable[[Summary], None], exit_code: int
) -> None:
    """Ends the process of a run whose main thread hangs, from another one, without a save.

    Summary and report are written where the run's folder is its own; before the first step there is nothing to leave.
    """
    if flight.alerting is not None and flight.alerting.stop is not None:
        flight.stopped(flight.alerting.stop)
    if flight.begun:
        summary = flight._summary()
        write_summary(summary)
        if report is not None:
            summary = dataclasses.replace(summary, report=_reported(flight.folder, report))
        on_end(summary)
    sys.stdout.flush()
    sys.stderr.flush()
    for child in psutil.Process().children(recursive=True):  # a worker that hangs would outlive this process
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(exit_code)


def _reported(folder: Path, report: Callable[[Path], Path]) -> Path | None:
    try:
        return report(folder)
    except Exception as error:  # noqa: BLE001  (the run itself went as it went)
        logger.warning("the report could not be made: %s", _words(error))
        return None


def _words(error: BaseException) -> str:
    if isinstance(error, PreflightError):
        return error.message
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__
