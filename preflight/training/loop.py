"""The training loop, top to bottom."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from preflight.config.watch import WatchSettings
from preflight.errors import PreflightError
from preflight.report.run_report import write_report
from preflight.runs import Run
from preflight.telemetry.network import unreachable
from preflight.telemetry.sampler import TelemetryWriter
from preflight.training import checkpoints
from preflight.training.alerting import Alerting
from preflight.training.alerts import Alert
from preflight.training.camera_views import milestone_steps, picture
from preflight.training.device_errors import device_errors
from preflight.training.device_feed import DeviceFeed
from preflight.training.ending import Flight, abandon, end_of, ending
from preflight.training.folder import create_folder, refuse_folder, saved_steps
from preflight.training.folder_lock import locked
from preflight.training.forecast import Forecast
from preflight.training.hang import HangWatch
from preflight.training.mesh import make_mesh, replicated, require_divisible
from preflight.training.metrics_file import MetricsFile
from preflight.training.progress import Progress, progress_asset, read_progress
from preflight.training.record import read_clearance, require_same_run, write_clearance, write_record
from preflight.training.run_log import RunLog
from preflight.training.saves import Saves
from preflight.training.state import TrainState, abstract_state, first_state, state_sharding
from preflight.training.step import compile_step
from preflight.training.stop_requests import stop_requests
from preflight.training.summary import Summary
from preflight.training.tracking import Tracker, choose_mode
from preflight.training.watch import Watch

logger = logging.getLogger(__name__)


def train(
    run: Run,
    folder: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    clearance: dict[str, Any] | None = None,
    watch: WatchSettings | None = None,
    report: Callable[[Path], Path] | None = write_report,
    say: Callable[[str], None] = print,
    on_step: Callable[[int], None] = lambda step: None,
    on_end: Callable[[Summary], None] = lambda summary: None,
    leave: Callable[[], object] | None = None,
) -> Summary:
    """Trains, from the data to the last checkpoint.

    Nothing is written before the first step has succeeded: a failed start leaves no folder and no wandb run behind.
    Once the folder is there, `summary.json` and the report are written however the run ends.

    Args:
        run: What to train.
        folder: The run's folder, see `run_folder`.
        overwrite: Delete what the folder holds.
        resume: Go on from the folder's newest checkpoint, with the order of the data that it would have had.
        clearance: The checklist's document, kept as `clearance.json`. A resume without one is held against the one
            that is kept.
        watch: The rules that watch the run; all with their usual limits without it.
        report: Makes the report at the end; None for none.
        say: Called with each line meant for the terminal.
        on_step: Called with each step that was handed to the device.
        on_end: Called with the summary, however the run ends, once its folder was made.
        leave: Ends the process, where a second signal (or the first, before there is something to save) finds the main
            thread in code that no signal interrupts, as a compiler's.

    Raises:
        UsageError: The folder is taken, there is nothing to resume, or the batch does not fit the devices.
        DataError: The dataset or the pretrained parameters are missing, damaged or do not fit.
        PreflightError: The device has too little memory, the last checkpoint cannot be written or one not be restored,
            or loader workers died too often.
        KeyboardInterrupt: At a second signal, or the first before there is something to save.
    """
    facts = run.facts
    refuse_folder(folder, overwrite=overwrite, resume=resume)
    if resume and saved_steps(folder)[-1] + 1 >= facts.num_train_steps:
        return end_of(folder, facts, report, on_end, say)
    require_divisible(facts.batch_size, facts.fsdp_devices, jax.device_count())
    mesh = make_mesh(facts.fsdp_devices)
    rules = watch or WatchSettings()

    flight = Flight(folder=folder, batch_size=facts.batch_size)
    clocks = flight.clocks
    with (
        stop_requests(leave) as stop,
        ending(flight, report, on_end),
        device_errors(facts),
        contextlib.ExitStack() as stack,
    ):
        stack.callback(clocks.close)
        if (resume or overwrite) and jax.process_index() == 0:
            stack.enter_context(locked(folder))
        telemetry = stack.enter_context(TelemetryWriter(os.getpid(), on_sample=flight.sampled))
        with clocks.on("start"):
            say(f"Training config: {facts.name} with {facts.num_workers} workers")
            dataset = run.dataset()
            if resume:
                require_same_run(folder, facts, len(dataset))
            assets = run.assets()
            choice = choose_mode(facts.wandb_enabled, ping=unreachable)
            init_rng, rng = run.keys()
            manager, state = _state(run, folder, mesh, init_rng, resume=resume, say=say)
            start = int(state.step)
            rng = jax.device_put(rng, replicated(mesh))
        feed = stack.enter_context(DeviceFeed(dataset, facts, mesh, start=start, clocks=clocks))
        alerting = flight.alerting = Alerting(say)
        hang = stack.enter_context(
            HangWatch(
                rules,
                on_alert=alerting.tell,
                worker_stacks=feed.loader.worker_stacks,
                end=functools.partial(abandon, flight, report, on_end),
            )
        )
        with hang.busy("the start: the first batch, the compile, the first step"):
            host, batch = feed.take()
            with clocks.on("compile"):
                began = time.perf_counter()
                step_fn = compile_step(run, mesh).lower(rng, state, batch).compile()
                flight.compile_s = time.perf_counter() - began
            began = time.perf_counter()
            state, metrics = step_fn(rng, state, batch)
            clocks.dispatched(start, began, metrics)
            jax.block_until_ready(metrics)
        stop.hold()

        progress = Progress()
        if manager is None:
            create_folder(folder, overwrite=overwrite)
            flight.begun = True
            if jax.process_index() == 0:
                stack.enter_context(locked(folder))
            write_record(folder, facts, len(dataset))
            manager = checkpoints.open_manager(folder, keep_period=facts.keep_period)
        else:
            progress = read_progress(folder / str(start - 1), metrics.keys())
        flight.begun, flight.wandb_mode = True, choice.mode
        metrics_file = stack.enter_context(MetricsFile(folder, start))
        telemetry.open(folder / "telemetry.jsonl")
        if clearance is not None:
            write_clearance(folder, clearance)
        elif resume:
            clearance = read_clearance(folder)
        say(f"wandb: {choice.mode} ({choice.reason})")
        tracker = flight.tracker = Tracker.start(
            choice,
            project=facts.project_name,
            name=folder.name,
            config={**facts.settings, "clearance": clearance},
            folder=folder,
            resume=resume,
        )
        log = flight.log = RunLog(
            facts, metrics_file, clocks=clocks, tracker=tracker, telemetry=flight.telemetry, say=say,
            compile_s=flight.compile_s, watch=flight.looked, progress=progress, sharding=replicated(mesh),
        )  # fmt: skip
        alerting.open(folder, tracker)
        hang.folder = folder
        flight.watch = Watch(
            rules,
            Forecast.read(clearance, facts.settings),
            num_train_steps=facts.num_train_steps,
            accumulation_steps=facts.gradient_accumulation_steps,
            losses=metrics_file.losses,
            start=start,
        )
        milestones = milestone_steps(facts)
        saves = Saves(manager, functools.partial(_tell_of_failed_save, alerting), flight.saved)
        before: Any = None  # the metrics of the step before the one under way

        for step in range(start, facts.num_train_steps):
            if step > start:
                try:
                    host, batch = feed.take()
                except PreflightError as error:
                    # The loader failed, the state is whole: nothing of what was trained is lost.
                    with hang.busy(f"checkpoint {step - 1}"):
                        _save(saves, step - 1, state, assets, flight, metrics_file)
                        saves.finish()
                    raise PreflightError(error.message, _resumable(error.hint, saves.saved)) from error
                # The device has one step queued behind the one it works on, and never more: each holds a batch, and a
                # stop would have to wait for all of them.
                jax.block_until_ready(before)
                before, began = metrics, time.perf_counter()
                state, metrics = step_fn(rng, state, batch)
                clocks.dispatched(step, began, metrics)
                hang.beat(step - 1)
            flight.steps += 1
            log.add(step, metrics)
            log.write()  # the interval that ended with the step before, while the device works on this one
            last = step == facts.num_train_steps - 1
            if not (last or stop or alerting.stop):
                feed.prefetch()
            # Decided once: a signal or an alert that comes after this is for the next step.
            interrupted, stopped = stop.received if not last else None, alerting.stop
            if interrupted is not None:
                flight.ends("interrupted", f"by {interrupted.name}")
                say(f"{interrupted.name}: saving a checkpoint, then stopping (again to stop at once)")
            ends = last or interrupted is not None or stopped is not None

            # An interval that a signal cuts short is no record: the checkpoint keeps it, and a resume goes on with it.
            if step % facts.log_interval == 0 or last or stopped:
                log.close_interval()
                saves.look()
            elif step == start:
                log.resumed(step)
            if step in milestones:
                flight.camera_views += picture(host, folder, step, tracker)
            if (step % facts.save_interval == 0 and step > 0) or ends:
                with hang.busy(f"checkpoint {step}"):
                    _save(saves, step, state, assets, flight, metrics_file)
            on_step(step)
            if ends:
                break
        with clocks.on("checkpoint"), hang.busy("the last checkpoint"):
            saves.finish()
        if alerting.stop:
            flight.stopped(alerting.stop)
        saves.close()
    assert flight.summary is not None
    return flight.summary


def _state(
    run: Run, folder: Path, mesh: jax.sharding.Mesh, rng: jax.Array, *, resume: bool, say: Callable[[str], None]
) -> tuple[ocp.CheckpointManager | None, TrainState]:
    """The state to go on from, and the checkpoints that it is from."""
    if resume:
        manager = checkpoints.open_manager(folder, keep_period=run.facts.keep_period)
        return manager, checkpoints.restore(manager, saved_steps(folder)[-1], abstract_state(run, mesh))
    if weights := run.weights():
        say(f"Starting from {weights.name}")
    return None, first_state(run, rng, state_sharding(run, mesh))


def _save(
    saves: Saves, step: int, state: TrainState, assets: dict[str, bytes], flight: Flight, metrics_file: MetricsFile
) -> None:
    """Starts the save of a state that is worth it, and was not saved already."""
    if step in (saves.saved, saves.under_way):
        return
    # Steps that are still under way on the device belong to the steps' clock, not to the save's.
    jax.block_until_ready(state)
    assert flight.log is not None
    flight.log.write()
    if broken := flight.log.broken():
        logger.warning("checkpoint %d is not saved: %s; the older ones stay", step, broken)
        return
    with flight.clocks.on("checkpoint"):
        metrics_file.sync()
        saves.start(step, state, {**assets, **progress_asset(flight.log.progress())})


def _tell_of_failed_save(alerting: Alerting, step: int, message: str, advice: str) -> None:
    alerting.tell(
        Alert(rule="checkpoint.save", severity="warn", step=step, window=None, message=message, advice=advice)
    )


def _resumable(hint: str | None, saved: int | None) -> str:
    kept = "" if saved is None else f"Checkpoint {saved} is saved; --resume goes on from it."
    return f"{hint or ''} {kept}".strip()
