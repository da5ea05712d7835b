"""Launching the checkout's own training script, with telemetry beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from preflight.errors import PreflightError, UsageError
from preflight.runs.openpi.install import checkout
from preflight.runs.openpi.run import OpenpiRun
from preflight.telemetry.sampler import TelemetryWriter

_POLL_S = 0.5
# How long the script may take to end after Ctrl-C or SIGTERM; Orbax finishes the save that is under way.
_GRACE_S = 120.0


def script_command(run: OpenpiRun, exp_name: str, *, resume: bool = False) -> list[str]:
    """The command line of `scripts/train.py` that means this run, its overrides written as openpi writes them.

    Args:
        run: The run.
        exp_name: openpi's `--exp-name`.
        resume: openpi's `--resume`.

    Raises:
        UsageError: openpi was installed without its scripts.
    """
    folder = checkout()
    if folder is None:
        raise UsageError(
            "--trainer openpi needs a checkout: this openpi was installed without scripts/train.py",
            "name the checkout with --openpi DIR",
        )
    words = [sys.executable, str(folder / "scripts" / "train.py"), run.facts.name, f"--exp-name={exp_name}"]
    if resume:
        words.append("--resume")
    for key in dict.fromkeys(assignment.partition("=")[0].strip() for assignment in run.facts.assignments):
        words += _option(key, _value(run.config, key))
    return words


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _option(key: str, value: Any) -> list[str]:
    """A value as tyro reads it, which openpi's command line is made with."""
    if isinstance(value, bool):
        *parents, name = key.split(".")
        return ["--" + ".".join([*parents, name if value else f"no-{name}"])]
    if isinstance(value, tuple | list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={value}"]


def launch(command: list[str], folder: Path, *, clearance: dict[str, Any] | None, environment: dict[str, str]) -> None:
    """Runs the script to its end; Ctrl-C and SIGTERM reach it, and it is waited for.

    Args:
        command: From `script_command`.
        folder: The run's folder, which the script makes itself and refuses to find; `clearance.json` and
            `telemetry.jsonl` are written there once it has.
        clearance: The checklist's document.
        environment: Variables for the script that are set where the user has not set them.

    Raises:
        PreflightError: It was killed, or ended with an error.
    """
    process = subprocess.Popen(command, env={**environment, **os.environ})
    asked = False

    def pass_on(number: int, _: Any) -> None:
        nonlocal asked
        if number != signal.SIGINT or asked:  # the terminal sends the first Ctrl-C to the script as well
            process.send_signal(signal.SIGKILL if asked else number)
        asked = True

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with TelemetryWriter(process.pid) as telemetry:
            opened, deadline = False, None
            while process.poll() is None:
                if not opened and folder.is_dir():
                    telemetry.open(folder / "telemetry.jsonl")
                    if clearance is not None:
                        (folder / "clearance.json").write_text(json.dumps(clearance, indent=2) + "\n")
                    opened = True
                if asked and deadline is None:
                    deadline = time.monotonic() + _GRACE_S
                if deadline is not None and time.monotonic() > deadline:
                    process.kill()
                time.sleep(_POLL_S)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.kill()
            process.wait()
    if asked:
        raise KeyboardInterrupt
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        hint = "RAM ran out? see dmesg, and telemetry.jsonl" if name == "SIGKILL" else "see its last lines above"
        raise PreflightError(f"{command[1]} was killed by {name}", hint)
    if process.returncode:
        raise PreflightError(f"{command[1]} ended with exit code {process.returncode}", "its own lines are above")
