"""`python -m bench.soak`: a run killed again and again, and resumed, ends bit-identical to one that was left alone.

Signals come at random moments of the command's life: while it starts, between steps, and inside of saves, which are
watched for. Exit code 0 where every run that was disturbed has the parameters, the optimizer's state and the metrics
(without what a clock says) of the one that was not.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from bench.processes import preflight_command
from preflight.training.folder import saved_steps, unfinished_saves
from preflight.training.summary import last_exit

_SETTINGS = (
    "log_interval=7",
    "save_interval=3",
    "keep_period=none",
    "num_workers=2",
    "lr_schedule.warmup_steps=5",
    "ema_decay=0.9",
)
_SAVE_SHARE = 0.4  # of the signals, sent while a save is under way
_TIMEOUT_S = 600.0


class Soak:
    """Runs of one config below a folder.

    Args:
        config: Its name or file.
        base: The folder.
        steps: The length of each run.
        chance: Where the moments come from.
    """

    def __init__(self, config: str, base: Path, steps: int, chance: random.Random) -> None:
        self._config, self._base, self._steps, self._chance = config, base, steps, chance
        self._start_s = 20.0  # how long a start takes until its first step, from the run that is left alone

    def folder(self, name: str) -> Path:
        """Where a run lies."""
        return next(iter(self._base.glob(f"*/{name}")), self._base / "none" / name)

    def undisturbed(self, name: str) -> None:
        """Makes a run that is left alone."""
        began = time.monotonic()
        process = self._begin(name)
        while process.poll() is None and not (self.folder(name) / "metrics.jsonl").exists():
            time.sleep(0.05)
        self._start_s = time.monotonic() - began
        self._expect(process, 0, name)

    def disturbed(self, name: str, signals: list[signal.Signals], counts: Counter[str]) -> None:
        """Makes a run that gets signals, one for each start, until it is complete; takes those that it gets off."""
        while signals:
            number = signals[-1]
            said = len(self._output(name))
            process, before = self._begin(name), self._saved(name)
            where = self._wait(process, name, before)
            if process.poll() is not None:
                break  # it was complete before its moment came
            process.send_signal(number)
            code = process.wait(_TIMEOUT_S)
            if code == 0:
                break  # the signal came after the last step
            # Before the command has said its first word, Python may still be starting: then a SIGTERM ends it as well.
            unheard = len(self._output(name)) == said
            expected = {-number} if number == signal.SIGKILL else {130, -number} if unheard else {130}
            if code not in expected:
                raise SystemExit(f"{name}: exit code {code} after {number.name}\n{self._output(name)[-4000:]}")
            signals.pop()
            inside = number == signal.SIGKILL and bool(unfinished_saves(self.folder(name)))
            counts[f"{number.name} {'inside of a save' if inside else where}"] += 1
            print(f"  {name}: {number.name:7} {where}{', a save was cut off' if inside else ''}", flush=True)
            if last_exit(self.folder(name)) == "completed":
                return  # only its last words were cut off
        else:
            self._expect(self._begin(name), 0, name)
            return
        if process.returncode:
            raise SystemExit(f"{name}: exit code {process.returncode}\n{self._output(name)[-4000:]}")

    def left(self, name: str) -> tuple[list[Any], list[dict[str, Any]], dict[str, Any]]:
        """What must not differ: the arrays of the last checkpoint, the metrics, the losses of the summary."""
        import jax
        import numpy as np
        import orbax.checkpoint as ocp

        folder = self.folder(name)
        step = folder / str(saved_steps(folder)[-1])
        # jax tells of a plugin for GPUs that finds none, Orbax that arrays come back to where they were.
        logging.getLogger("jax._src.xla_bridge").setLevel(logging.CRITICAL)
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            trees = [ocp.PyTreeCheckpointer().restore(step / item) for item in ("params", "train_state")]
        arrays = [
            (step.name, jax.tree_util.keystr(path), np.asarray(leaf))
            for tree in trees
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        ]
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        timeless = [
            {key: value for key, value in record.items() if key != "time" and not key.startswith("efficiency/")}
            for record in records
        ]
        summary = json.loads((folder / "summary.json").read_text())
        return arrays, timeless, {key: summary[key] for key in ("exit", "best_loss", "last_loss", "checkpoints")}

    def _wait(self, process: subprocess.Popen[bytes], name: str, before: int) -> str:
        """Waits for a moment; says which."""
        if self._chance.random() < _SAVE_SHARE:
            saves = self._chance.randint(1, 2)
            seen: set[str] = set()
            while process.poll() is None:
                seen |= {path.name.partition(".")[0] for path in unfinished_saves(self.folder(name))} - {str(before)}
                if len(seen) >= saves:
                    time.sleep(self._chance.uniform(0, 0.1))
                    return "at a save"
                time.sleep(0.001)
            return "never"
        began, logged = time.monotonic(), self._logged(name)
        moment, starts = began + self._chance.uniform(0, 1.8 * self._start_s), True
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.01)
            if starts and self._logged(name) != logged:
                # As it is by now: on a machine that has got faster, a run would be over before most moments come.
                self._start_s, starts = time.monotonic() - began, False
        return "while it starts" if self._saved(name) == before else "after a save"

    def _logged(self, name: str) -> int:
        """Bytes of the run's record."""
        path = self.folder(name) / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def _saved(self, name: str) -> int:
        return max(saved_steps(self.folder(name)), default=-1)

    def _begin(self, name: str) -> subprocess.Popen[bytes]:
        way = ["--resume"] if self._saved(name) >= 0 else ["--overwrite"]
        settings = (*_SETTINGS, f"num_train_steps={self._steps}", f"checkpoint_base_dir={self._base}")
        overrides = [word for setting in settings for word in ("--set", setting)]
        environment = {
            **os.environ,
            "WANDB_MODE": "disabled",
            # What a start compiles is the same each time.
            "JAX_COMPILATION_CACHE_DIR": str(self._base / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with (self._base / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                preflight_command("train", self._config, "--exp-name", name, *way, *overrides),
                cwd=self._base,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _expect(self, process: subprocess.Popen[bytes], code: int, name: str) -> None:
        if (found := process.wait(_TIMEOUT_S)) != code:
            raise SystemExit(f"{name}: exit code {found} instead of {code}\n{self._output(name)[-4000:]}")

    def _output(self, name: str) -> str:
        path = self._base / f"{name}.log"
        return path.read_text() if path.exists() else ""


def differences(found: tuple[list[Any], Any, Any], wanted: tuple[list[Any], Any, Any]) -> list[str]:
    """What of one run differs from another one's, in words; see `Soak.left`."""
    import numpy as np

    arrays = [
        f"step {step}: {path}"
        for (step, path, a), (other, where, b) in zip(found[0], wanted[0], strict=True)
        if (step, path) != (other, where) or not np.array_equal(a, b, equal_nan=True)
    ]
    records = [f"metrics: {a} is not {b}" for a, b in zip(found[1], wanted[1], strict=False) if a != b]
    if len(found[1]) != len(wanted[1]):
        records.append(f"{len(found[1])} records instead of {len(wanted[1])}")
    return [*arrays, *records, *([] if found[2] == wanted[2] else [f"summary: {found[2]} is not {wanted[2]}"])]


def main() -> int:
    """Prints each signal as it is sent, and a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("config", nargs="?", default="pi0_lighter_cup_demo")
    parser.add_argument("--sigkill", type=int, default=20, metavar="N", help="how many (20)")
    parser.add_argument("--sigterm", type=int, default=5, metavar="N", help="how many (5)")
    parser.add_argument("--steps", type=int, default=60, help="of each run (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    words = parser.parse_args()
    chance = random.Random(words.seed)
    signals = [signal.SIGKILL] * words.sigkill + [signal.SIGTERM] * words.sigterm
    chance.shuffle(signals)
    began, counts, wrong, runs = time.monotonic(), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory(prefix="preflight-soak-") as base:
        soak = Soak(words.config, Path(base), words.steps, chance)
        soak.undisturbed("undisturbed")
        wanted = soak.left("undisturbed")
        print(f"undisturbed: {words.steps} steps, {len(wanted[0])} arrays, {len(wanted[1])} records", flush=True)
        while signals:
            name = f"disturbed-{runs}"
            soak.disturbed(name, signals, counts)
            found = differences(soak.left(name), wanted)
            print(f"{name}: {'bit-identical' if not found else '; '.join(found[:5])}", flush=True)
            runs, wrong = runs + 1, wrong + bool(found)
    for what, count in sorted(counts.items()):
        print(f"{count:4} {what}")
    print(
        f"{counts.total()} signals in {runs} runs of {words.steps} steps, {runs - wrong} of them bit-identical; "
        f"{(time.monotonic() - began) / 60:.0f} min"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
