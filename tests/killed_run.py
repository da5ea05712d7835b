"""Runs that are killed and resumed, and what of them must not differ from one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from toy_run import flying_toy

from preflight.training import checkpoints
from preflight.training.folder import saved_steps, unfinished_saves
from preflight.training.mesh import make_mesh
from preflight.training.state import abstract_state

TESTS = Path(__file__).parent
CHILD = TESTS / "resume_child.py"


def folder_of(base, name):
    return Path(base) / "pi0_lighter_cup_demo" / name


def start(base, name, *words):
    """Starts the child; its output goes to a file beside the folder of its runs, whose disk may be full."""
    with _log(base, name).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(CHILD), str(base), name, *words],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def output_of(base, name):
    return _log(base, name).read_text()


def _log(base, name):
    return Path(base).parent / f"{Path(base).name}-{name}.log"


def wait_for(process, condition, timeout_s=120):
    """Waits until the condition holds; False where the process ended before that."""
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)
    return False


def steps_logged(folder):
    try:
        return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


def reaches(folder, step):
    """Whether the run has logged a step from this one on."""
    return lambda: max(steps_logged(folder), default=-1) >= step


def saves(folder, after):
    """Whether a save of a step after this one is under way."""

    def condition():
        try:
            return any(int(path.name.partition(".")[0]) > after for path in unfinished_saves(folder))
        except (OSError, ValueError):
            return False

    return condition


def end(process, number=signal.SIGKILL, timeout_s=60):
    """Signals the process and gives its exit code."""
    if process.poll() is None:
        process.send_signal(number)
    return process.wait(timeout_s)


def finish(base, name, *words):
    """Runs the child to its end."""
    process = start(base, name, *words)
    code = process.wait(200)
    assert code == 0, output_of(base, name)[-4000:]


def left(base, name):
    """The last state, and the metrics without what the clock says."""
    folder = folder_of(base, name)
    run = flying_toy(base, "ema_decay=0.9", width=256)
    manager = checkpoints.open_manager(folder, keep_period=None)
    try:
        step = saved_steps(folder)[-1]
        state = checkpoints.restore(manager, step, abstract_state(run, make_mesh(1, jax.devices()[:1])))
    finally:
        manager.close()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        {key: value for key, value in record.items() if key != "time" and not key.startswith("efficiency/")}
        for record in records
    ]
    summary = json.loads((folder / "summary.json").read_text())
    said = {name: summary[name] for name in ("best_loss", "last_loss", "exit", "checkpoints")}
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)], timeless, said


def assert_identical(found, wanted):
    assert found[1:] == wanted[1:]
    for a, b in zip(found[0], wanted[0], strict=True):
        np.testing.assert_array_equal(a, b)
