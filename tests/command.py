"""The `preflight` command as a user runs it: the console script, in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import psutil

PREFLIGHT = str(Path(sys.executable).parent / "preflight")
ROOT = Path(__file__).parent.parent
EXAMPLE = str(ROOT / "examples" / "g1.toml")
# A toy of a toy: four tokens an image and four action steps.
TINY = [
    word
    for assignment in (
        "model.siglip_variant=mu/112",
        "model.action_horizon=4",
        "batch_size=2",
        "num_train_steps=40",
        "log_interval=2",
        "lr_schedule.decay_steps=40",
    )
    for word in ("--set", assignment)
]


def environment(**changes):
    # As a user has it: one CPU device with steps in flight, and code that is made to be fast, which takes a while once
    # and pays over the steps of some ten runs (openpi's jaxlib 0.5.3 takes minutes for it).
    fast = {} if metadata.version("jax").startswith("0.5.") else {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    as_users = {"XLA_FLAGS": "", "JAX_CPU_ENABLE_ASYNC_DISPATCH": "1", "COLUMNS": "100", **fast}
    return {**os.environ, **as_users, **changes}


def preflight(*words, cwd, **changes):
    return subprocess.run(
        [PREFLIGHT, *words], cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=240
    )


def interrupt_when(words, *, cwd, sign, number=signal.SIGINT, prefix=(), timeout_s=120):
    """Starts the command, sends it a signal once `sign` stands in its output, and returns (exit code, output).

    Fails if a process that the command started is alive afterwards.
    """
    process = subprocess.Popen(
        [*prefix, PREFLIGHT, *words],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines, children = [], []
    try:
        for line in process.stdout:
            lines.append(line)
            if sign in line:
                children = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(number)
                break
        rest, _ = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    output = "".join(lines) + rest
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive, f"left behind: {alive}\n{output}"
    return process.returncode, output


def wait_until(condition, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
