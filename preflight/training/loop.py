"""The training loop, top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from preflight.data.loader import BatchLoader
from preflight.errors import PreflightError, UsageError
from preflight.runs import Run
from preflight.runs.protocol import Batch
from preflight.training import checkpoints
from preflight.training.camera_views import camera_views, milestone_steps, save_camera_views
from preflight.training.folder import create_folder, refuse_folder, saved_steps
from preflight.training.interval import IntervalMetrics
from preflight.training.mesh import make_mesh, put_batch, require_divisible
from preflight.training.metrics import metrics_line
from preflight.training.record import require_same_run, write_record
from preflight.training.state import abstract_state, first_state, state_sharding
from preflight.training.step import compile_step
from preflight.training.tracking import Tracker, choose_mode

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a finished or interrupted run leaves."""

    folder: Path
    steps: int  # made by this process
    seconds: float  # of the loop, without the first step
    steps_per_sec: float  # over the loop, without the first step; NaN for a single step
    first_step_s: float  # compile and first step
    last_loss: float
    best_loss: float
    checkpoints: tuple[int, ...]
    camera_views: tuple[Path, ...]
    wandb_mode: str
    wandb_sync: str | None
    interrupted: bool


def train(
    run: Run,
    folder: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    clearance: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
    on_step: Callable[[int], None] = lambda step: None,
) -> Summary:
    """Trains, from the data to the last checkpoint.

    Nothing is written before the first step has succeeded: a failed start leaves no folder and no wandb run behind.

    Args:
        run: What to train.
        folder: The run's folder, see `run_folder`.
        overwrite: Delete what the folder holds.
        resume: Go on from the folder's newest checkpoint, with the order of the data that it would have had.
        clearance: The checklist's document, kept as `clearance.json`.
        say: Called with each line meant for the terminal.
        on_step: Called with each finished step.

    Raises:
        UsageError: The folder is taken, there is nothing to resume, or the batch does not fit the devices.
        DataError: The dataset or the pretrained parameters are missing, damaged or do not fit.
        PreflightError: A checkpoint cannot be written or restored, or a loader worker died.
    """
    facts = run.facts
    refuse_folder(folder, overwrite=overwrite, resume=resume)
    require_divisible(facts.batch_size, facts.fsdp_devices, jax.device_count())
    mesh = make_mesh(facts.fsdp_devices)

    say(f"Training config: {facts.name} with {facts.num_workers} workers")
    dataset = run.dataset()
    if resume:
        require_same_run(folder, facts, len(dataset))
    assets = run.assets()
    choice = choose_mode(facts.wandb_enabled)
    init_rng, rng = run.keys()
    manager = checkpoints.open_manager(folder, keep_period=facts.keep_period) if resume else None
    if manager is not None:
        state = checkpoints.restore(manager, saved_steps(folder)[-1], abstract_state(run, mesh))
    else:
        if weights := run.weights():
            say(f"Starting from {weights.name}")
        state = first_state(run, init_rng, state_sharding(run, mesh))
    start = int(state.step)
    if start >= facts.num_train_steps:
        raise UsageError(
            f"{folder.name} is complete: {start} of {facts.num_train_steps} steps are done",
            "train longer with --set num_train_steps=N",
        )
    step_fn = compile_step(run, mesh)

    def device_batch() -> tuple[Batch, Batch, float]:
        began = time.perf_counter()
        host = next(loader)
        return host, put_batch(host, mesh), time.perf_counter() - began

    with BatchLoader(
        dataset,
        batch_size=facts.batch_size,
        num_workers=facts.num_workers,
        seed=facts.seed,
        start_batch=start,
    ) as loader:
        host, batch, _ = device_batch()
        began = time.perf_counter()
        state, metrics = step_fn(rng, state, batch)
        jax.block_until_ready(metrics)
        first_step_s = time.perf_counter() - began

        if manager is None:
            create_folder(folder, overwrite=overwrite)
            write_record(folder, facts, len(dataset))
            manager = checkpoints.open_manager(folder, keep_period=facts.keep_period)
        if clearance is not None:
            (folder / "clearance.json").write_text(json.dumps(clearance, indent=2) + "\n")
        say(f"wandb: {choice.mode} ({choice.reason})")
        tracker = Tracker.start(
            choice,
            project=facts.project_name,
            name=folder.name,
            config={**facts.settings, "clearance": clearance and clearance["verdict"]},
            folder=folder,
            resume=resume,
        )
        milestones = milestone_steps(facts)
        interval = IntervalMetrics(facts.log_interval)
        views: list[Path] = []
        best_loss, last_loss = math.inf, math.nan
        data_wait, saving = 0.0, 0.0
        loop_began = interval_began = time.perf_counter()
        saving_all = 0.0
        logged = start  # the last step that was logged
        saved: int | None = None  # the last step whose save was started

        with _stop_requests() as stop, (folder / "metrics.jsonl").open("a+") as metrics_file:
            if resume:
                _drop_from(metrics_file, start)
            for step in range(start, facts.num_train_steps):
                if step > start:
                    try:
                        host, batch, waited = device_batch()
                    except PreflightError as error:
                        # The loader failed, the state is whole: nothing of what was trained is lost.
                        if saved != step - 1:
                            checkpoints.save(manager, step - 1, state, assets, pending=saved)
                        checkpoints.finish(manager, step - 1)
                        tracker.finish()
                        hint = f"{error.hint or ''} Checkpoint {step - 1} is saved; --resume goes on from it.".strip()
                        raise PreflightError(error.message, hint) from error
                    data_wait += waited
                    state, metrics = step_fn(rng, state, batch)
                interval.add(step, metrics)
                if stop:
                    say(f"{signal.Signals(stop[0]).name}: saving a checkpoint, then stopping (again to stop at once)")
                last = step == facts.num_train_steps - 1 or bool(stop)

                if step % facts.log_interval == 0 or step == start or last:
                    values = interval.fetch().reduced(facts.gradient_accumulation_steps)  # waits for the device
                    elapsed = time.perf_counter() - interval_began - saving
                    line = metrics_line(values)
                    if step == start:
                        say(f"Step {step}: {line} | first step {first_step_s:.1f} s, compile included")
                    else:
                        steps = step - logged
                        values |= {
                            "efficiency/steps_per_sec": steps / elapsed,
                            "efficiency/samples_per_sec": steps * facts.batch_size / elapsed,
                            "efficiency/time_per_step": elapsed / steps,
                            "efficiency/data_wait": data_wait / steps,
                        }
                        say(f"Step {step}: {line} | {steps / elapsed:.2f} steps/s")
                    if not math.isfinite(values["loss"]):
                        say(f"warning: the loss became {values['loss']} somewhere within steps [{logged}, {step}]")
                    last_loss, best_loss = values["loss"], min(best_loss, values["loss"])
                    # NaN and infinity are not JSON: written as text, they stay visible.
                    record = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
                    metrics_file.write(json.dumps({"step": step, "time": time.time(), **record}) + "\n")
                    metrics_file.flush()
                    tracker.log(values, step)
                    data_wait, saving, logged = 0.0, 0.0, step
                    interval_began = time.perf_counter()

                saves = (step % facts.save_interval == 0 and step > 0) or last
                if saves or step in milestones:
                    # Steps that are still under way on the device belong to the steps' clock, not to the save's.
                    jax.block_until_ready(state)
                    began = time.perf_counter()
                    if step in milestones:
                        views += _picture(host, folder, step, tracker)
                    if saves:
                        checkpoints.save(manager, step, state, assets, pending=saved)
                        saved = step
                    saving += time.perf_counter() - began
                    saving_all += time.perf_counter() - began
                on_step(step)
                if last:
                    break

        seconds = time.perf_counter() - loop_began - saving_all
        checkpoints.finish(manager, saved)
        kept = tuple(saved_steps(folder))
        manager.close()
        sync = tracker.sync_command()
        tracker.finish()
    return Summary(
        folder=folder,
        steps=step - start + 1,
        seconds=seconds,
        steps_per_sec=(step - start) / seconds if step > start else math.nan,
        first_step_s=first_step_s,
        last_loss=last_loss,
        best_loss=best_loss,
        checkpoints=kept,
        camera_views=tuple(views),
        wandb_mode=choice.mode,
        wandb_sync=sync,
        interrupted=bool(stop),
    )


def _picture(host: Batch, folder: Path, step: int, tracker: Tracker) -> list[Path]:
    try:
        views = camera_views(host)
        if not views:
            return []
        path = save_camera_views(views, folder / "camera_views", step)
        tracker.log_images("camera_views", list(views.values()), list(views), step)
    except OSError as error:
        logger.warning("camera views of step %d could not be written: %s", step, error)
        return []
    return [path]


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collects Ctrl-C, SIGTERM and SIGHUP, so that the loop can save and end; a second one ends at once."""
    received: list[int] = []

    def on_signal(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        # Nothing else: a handler that prints can itself fail, as when Ctrl-C has ended the reader of a pipe.
        received.append(number)

    # What the process was started to ignore stays ignored: `nohup preflight train` outlives its terminal.
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    try:
        previous = {number: signal.signal(number, on_signal) for number in numbers}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        previous = {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _drop_from(file: Any, start: int) -> None:
    """Drops the records of steps that the interrupted run made beyond its checkpoint, and a line cut short."""
    kept = []
    file.seek(0)
    for line in file.read().splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if json.loads(line)["step"] < start:
                kept.append(line + "\n")
    file.seek(0)
    file.truncate()
    file.writelines(kept)
