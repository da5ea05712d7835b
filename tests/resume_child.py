"""The toy trained in a process that tests kill.

`resume_child.py BASE NAME [--resume] [--slow-from=STEP] [--slow-saves] [KEY=VALUE …]`.
"""

import os
import sys

os.environ |= {
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
    "JAX_PLATFORMS": "cpu",
    "JAX_CPU_ENABLE_ASYNC_DISPATCH": "1",
}

import time

from toy_run import flying_toy

from preflight.cli.process_end import end_process
from preflight.data.loader import start_worker_server
from preflight.errors import EXIT_INTERRUPTED, PreflightError
from preflight.training import checkpoints
from preflight.training.folder import run_folder
from preflight.training.loop import train

# As slow as a step of a real model: so that there is a time to be killed at.
STEP_S = 0.02
SETTINGS = ["num_train_steps=60", "log_interval=7", "save_interval=5", "keep_period=20", "ema_decay=0.9"]


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(base, name, *words):
    resume = "--resume" in words
    slow_from = next((int(word.partition("=")[2]) for word in words if word.startswith("--slow-from=")), None)
    if "--slow-saves" in words:
        # The last thing before a checkpoint gets its name.
        checkpoints.list_files = lambda folder: time.sleep(30)
    words = [word for word in words if not word.startswith("--")]

    def on_step(step):
        time.sleep(30 if slow_from is not None and step >= slow_from else STEP_S)

    run = flying_toy(base, *SETTINGS, *words, width=256)
    if run.facts.num_workers:
        start_worker_server()
    try:
        summary = train(
            run,
            run_folder(run.facts, name),
            resume=resume,
            report=None,
            say=say,
            on_step=on_step,
            leave=lambda: end_process(EXIT_INTERRUPTED),
        )
    except PreflightError as error:
        say(f"{error.message}\n{error.hint}")
        end_process(error.exit_code)
    except KeyboardInterrupt:
        end_process(EXIT_INTERRUPTED)
    end_process(EXIT_INTERRUPTED if summary.interrupted else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
