"""A run whose loader gets stuck, in a process of its own, which the watch ends: `hang_child.py BASE STEP START_S`."""

import sys

from toy_run import flying_toy

from preflight.config.watch import read_watch
from preflight.training.folder import run_folder
from preflight.training.loop import train

if __name__ == "__main__":
    toy = flying_toy(sys.argv[1], "num_workers=1", "save_interval=3", stuck_step=int(sys.argv[2]))
    rules = read_watch("here", {"hang": {"severity": "stop", "seconds": 3, "factor": 3, "start": int(sys.argv[3])}})
    train(toy, run_folder(toy.facts, "run"), watch=rules, on_end=lambda summary: sys.stdout.write(summary.exit))
