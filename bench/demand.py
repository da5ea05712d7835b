"""What a training step consumes, as `--demand` gives it: a number, or a run that measured it.

A run's `metrics.jsonl` says for each log interval how long a step took and how long of that it waited for data. What
the step would take without waiting lies between the difference of the two and the whole: while the host waits, the
device may still be busy with the step before. Where little was waited the two are all but the same, and their
difference is taken; intervals that waited for more than `MAX_WAIT_SHARE` cannot tell.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preflight.errors import UsageError

MAX_WAIT_SHARE = 0.1
_METRICS = "metrics.jsonl"
_STEP, _WAIT, _RATE = "efficiency/time_per_step", "efficiency/data_wait", "efficiency/samples_per_sec"


@dataclass(frozen=True)
class Demand:
    """Samples/s that the loader is to deliver, and where that figure is from, in words."""

    samples_per_s: float
    source: str


def parse_demand(text: str) -> Demand:
    """What `--demand` means.

    Args:
        text: A number of samples/s, or a run's folder.

    Raises:
        UsageError: It is neither, or the run's metrics do not tell.
    """
    try:
        rate = float(text)
    except ValueError:
        return demand_of_run(Path(text))
    if not 0 < rate < math.inf:
        raise UsageError(f"--demand must be more than 0, not {text}")
    return Demand(rate, "given by --demand")


def demand_of_run(folder: Path) -> Demand:
    """The median over a run's log intervals of batch size / (time per step - data wait), in samples/s.

    Args:
        folder: Holds `metrics.jsonl`.

    Raises:
        UsageError: There is no such folder or file, it holds no interval, or all of them waited for data too long.
    """
    if not folder.is_dir():
        what = "no folder" if folder.exists() else "neither a number nor a folder that exists"
        raise UsageError(
            f"--demand {folder}: this is {what}", "samples/s, as in --demand 120, or a run's folder with metrics.jsonl"
        )
    intervals = np.array(_intervals(folder / _METRICS)).reshape(-1, 3)
    if not len(intervals):
        raise UsageError(
            f"--demand {folder}: {_METRICS} holds no interval with {_STEP}, {_WAIT} and {_RATE}",
            "a run writes its first ones at its second log step (log_interval)",
        )
    step_s, wait_s, rate = intervals.T
    told = wait_s <= MAX_WAIT_SHARE * step_s
    if not told.any():
        raise UsageError(
            f"--demand {folder}: its steps waited for data in {np.median(wait_s / step_s):.0%} of their time, so how "
            f"fast they would be without waiting cannot be told; only that it is more than {np.median(rate):.3g} "
            "samples/s",
            "take a run that hardly waited, or derive the demand from the step: --target GPU",
        )
    # The rate times a step's time is the batch size.
    ideal = (rate * step_s / (step_s - wait_s))[told]
    size = round(float(np.median(rate * step_s)))
    count = "1 interval" if len(ideal) == 1 else f"{len(ideal)} intervals"
    name = "/".join(folder.resolve().parts[-2:])  # config and run; the folders above are nobody else's business
    return Demand(float(np.median(ideal)), f"measured by the run {name} in {count} at batch size {size}")


def _intervals(path: Path) -> list[tuple[float, float, float]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(
            f"--demand {path.parent}: there is no {_METRICS} in it", "name the folder of one run, as train prints it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--demand {path.parent}: {_METRICS} cannot be read: {_reason(error)}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break  # the run was killed while it wrote it
            raise UsageError(f"--demand {path.parent}: line {number} of {_METRICS} is no JSON") from None
        if not isinstance(values, dict):
            raise UsageError(f"--demand {path.parent}: line {number} of {_METRICS} is no JSON object")
        step_s, wait_s, rate = (_figure(values.get(name)) for name in (_STEP, _WAIT, _RATE))
        # The first line of a start has none of them.
        if step_s and rate and wait_s is not None and wait_s <= step_s:
            found.append((step_s, wait_s, rate))
    return found


def _figure(value: Any) -> float | None:
    valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if valid else None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is no text"
