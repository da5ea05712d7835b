"""`preflight train`: the instrumented run, after the checklist where it is asked for."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from preflight.cli.options import ConfigArgument, OpenpiOption, SetOption, StackOption, one_of, open_run
from preflight.errors import EXIT_CLEARED, EXIT_INTERRUPTED, EXIT_NOT_CLEARED, EXIT_WATCH_STOPPED, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from preflight.runs import Facts
    from preflight.training.clocks import Clock
    from preflight.training.summary import Summary

_NAMES: dict[Clock, str] = {
    "start": "start",
    "compile": "compile",
    "data_wait": "waiting for data",
    "host": "host",
    "checkpoint": "checkpoints",
}
TRAINERS = ("preflight", "openpi")


def train(
    config: ConfigArgument = None,
    exp_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--exp-name",
            metavar="NAME",
            help="The run's folder; one made from date and time without it.",
            show_default=False,
        ),
    ] = None,
    after_checks: Annotated[
        bool, typer.Option("--after-checks", help="Run the checklist first; start only when it is cleared.")
    ] = False,
    auto_workers: Annotated[
        bool, typer.Option("--auto-workers", help="Measure the loader first and use the number of workers it asks for.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what the run's folder holds.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's newest checkpoint.")] = False,
    trainer: Annotated[
        str,
        typer.Option(
            "--trainer",
            metavar="NAME",
            help="preflight, the instrumented loop; or openpi, the checkout's own scripts/train.py.",
        ),
    ] = "preflight",
    stack: StackOption = "auto",
    ignore: Annotated[
        list[str], typer.Option("--ignore", metavar="ID=REASON", help="Keep a check out of the verdict.")
    ] = [],  # noqa: B006
    openpi: OpenpiOption = None,
    set_: SetOption = [],  # noqa: B006
) -> int:
    """Train with instruments.

    Exit codes: 0 done, 2 usage or config, 3 not cleared (nothing is left behind) or failed (the last save, too), 5 the
    watch stopped the run, 130 interrupted by Ctrl-C, SIGTERM or SIGHUP (and saved).
    """
    from preflight.training.folder import refuse_folder, run_folder

    one_of("--trainer", trainer, TRAINERS)
    run, project = open_run(config, stack, set_, openpi)
    if trainer == "openpi" and run.facts.stack != "openpi":
        raise UsageError(
            f"--trainer openpi: {run.facts.name} is a config of the {run.facts.stack} stack, which openpi does not know"
        )
    if resume and exp_name is None:
        raise UsageError("--resume needs --exp-name", "it names the run to go on with")
    if ignore and not after_checks:
        raise UsageError("--ignore has no meaning without --after-checks")
    # Until the loop takes the signals over, a SIGTERM ends the command as Ctrl-C does, and what it has started.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = run_folder(run.facts, exp_name or f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    refuse_folder(folder, overwrite=overwrite, resume=resume)

    if auto_workers:
        from preflight.cli.auto_workers import measured_workers

        # Before the checks, so that they judge the run as it will be.
        if (workers := measured_workers(run)) not in (None, run.facts.num_workers):
            run, project = open_run(config, stack, [*set_, f"num_workers={workers}"], openpi)
    clearance = None
    if after_checks:
        clearance = _clear(run, project, ignore, folder, overwrite, resume)
        if clearance["verdict"] == "not-cleared":
            sys.stdout.write("Not started: the checklist is not cleared. Nothing was created.\n")
            return EXIT_NOT_CLEARED
        sys.stdout.write("\n")
    if trainer == "openpi":
        return _launch(run, folder, overwrite, resume, clearance)
    from preflight.cli.cache import prepare_frames
    from preflight.cli.progress import TrainProgress
    from preflight.data.loader import start_worker_server
    from preflight.training.loop import train as fly

    if run.facts.num_workers:
        start_worker_server(run.facts.worker_modules)
    prepare_frames(run)
    threading.excepthook = _end_quietly
    sys.unraisablehook = _drop_late_results
    with TrainProgress(run.facts.num_train_steps) as progress:
        summary = fly(
            run,
            folder,
            overwrite=overwrite,
            resume=resume,
            clearance=clearance,
            watch=project.watch,
            say=progress.say,
            on_step=progress.advance,
            on_end=lambda summary: progress.say(_closing(summary, run.facts)),
            leave=_leave,
        )
    return {"interrupted": EXIT_INTERRUPTED, "stopped": EXIT_WATCH_STOPPED}.get(summary.exit, EXIT_CLEARED)


def _leave() -> None:
    from preflight.cli.process_end import end_process

    print("interrupted, at once", file=sys.stderr, flush=True)  # noqa: T201
    end_process(EXIT_INTERRUPTED)


def _launch(run: Any, folder: Path, overwrite: bool, resume: bool, clearance: dict[str, Any] | None) -> int:
    from checks.device import ADVISED_MEM_FRACTION
    from preflight.runs.openpi.trainer import launch, script_command
    from preflight.training.folder import delete_folder, saved_steps

    command = script_command(run, folder.name, resume=resume)
    if overwrite:
        delete_folder(folder)  # ours leaves no half of a run; the script then finds none to delete
    sys.stdout.write(f"$ {shlex.join(command)}\n")
    sys.stdout.flush()
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(ADVISED_MEM_FRACTION)}
    launch(command, folder, clearance=clearance, environment=environment)
    sys.stdout.write(f"\nThe script ended.\n  telemetry     {folder / 'telemetry.jsonl'}\n")
    if steps := saved_steps(folder):
        sys.stdout.write(f"  checkpoints   {folder} (steps {', '.join(map(str, steps))})\n")
    return 0


def _clear(run: Any, project: Any, ignore: list[str], folder: Path, overwrite: bool, resume: bool) -> dict[str, Any]:
    from checks.context import CheckContext
    from preflight.checklist import select
    from preflight.cli.clearing import all_checks, clear, heading, ignores_of
    from preflight.report.text import TextReport

    checks = all_checks()
    selection = select(checks, level="standard")
    context = CheckContext(run=run, expect=project.expect, folder=folder, overwrite=overwrite, resume=resume)
    report = TextReport(selection.checks, sys.stdout, heading=heading(context, "standard"))
    return clear(context, selection, level="standard", ignores=ignores_of(project, ignore, checks), report=report)


def _end_quietly(args: threading.ExceptHookArgs) -> None:
    """A failed save is reported by the loop; Orbax's own threads would print its traceback before that."""
    logging.getLogger(__name__).debug("in thread %s", args.thread, exc_info=args.exc_value)


def _drop_late_results(args: sys.UnraisableHookArgs) -> None:
    """After a failed save, writes that were under way report to an event loop that is gone."""
    if not (isinstance(args.exc_value, RuntimeError) and "Event loop is closed" in str(args.exc_value)):
        sys.__unraisablehook__(args)


def _closing(summary: Summary, facts: Facts) -> str:
    from preflight.runs import command_line

    folder = summary.folder
    ended = f"Training {summary.exit}" + (f" {summary.reason}" if summary.interrupted else "")
    pace = f", {summary.steps_per_sec:.2f} steps/s" if summary.steps > 1 else ""
    loss = f"loss {summary.last_loss:.4g} (best {summary.best_loss:.4g})"
    others = ", ".join(f"{label} {_spent(summary.clocks[name])}" for name, label in _NAMES.items())
    lines = [
        f"{ended}: {summary.steps} steps in {_spent(summary.seconds)}{pace}, {loss}",
        f"  goodput       {summary.goodput:.0%} of the time in steps; {others}",
        f"  metrics       {folder / 'metrics.jsonl'}",
    ]
    if summary.exit == "stopped":
        lines.insert(1, f"  why           {summary.reason}")
    if summary.camera_views:
        lines.append(f"  camera views  {folder / 'camera_views'} ({len(summary.camera_views)} pictures)")
    if summary.checkpoints:
        steps = ", ".join(str(step) for step in summary.checkpoints)
        lines.append(f"  checkpoints   {folder} (steps {steps})")
    if summary.report is not None:
        lines.append(f"  report        {summary.report}")
    if summary.wandb_sync:
        lines.append(f"  wandb         offline; upload with: {summary.wandb_sync}")
    if summary.exit != "completed":
        lines.append(f"  go on with    {command_line(facts, 'train', '--exp-name', folder.name, '--resume')}")
    return "\n".join(lines)


def _spent(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 3600:.2f} h"
