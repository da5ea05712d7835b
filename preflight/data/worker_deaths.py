"""How a loader worker ended, for people."""

from __future__ import annotations

import signal

import numpy as np

from preflight.data.worker import NOT_BEGUN, WHOLE_BATCH
from preflight.errors import PreflightError

_SHOWN = 4

_SIGNAL_HINTS: dict[int, str] = {
    signal.SIGKILL: "The kernel kills a process when RAM runs out (see dmesg): use fewer workers, or give it more RAM.",
    signal.SIGBUS: "A file that it had mapped was cut off, or memory ran out: look at the dataset's disk and at RAM.",
    signal.SIGSEGV: "A native library crashed, often a video decoder on a damaged file.",
}


def death(
    number: int, num_workers: int, pid: int | None, code: int, place: int, indices: np.ndarray | None
) -> PreflightError:
    """Says how a worker ended, and at which sample.

    Args:
        number: Of the worker.
        num_workers: In all.
        pid: Its process.
        code: Its exit code; the negative number of a signal.
        place: What it was at: a sample, or one of `preflight.data.worker`'s negative numbers.
        indices: Of the batch that it was at; None where it had nothing to do.
    """
    what = f"loader worker {number} of {num_workers} (pid {pid})"
    if code < 0:
        name = {int(s): s.name for s in signal.Signals}.get(-code, f"signal {-code}")
        what += f" was killed by {name}"
        hint = _SIGNAL_HINTS.get(-code, "Something outside the loader ended it.")
    else:
        what += f" ended with exit code {code}"
        hint = "Its own message is on stderr."
    if place == NOT_BEGUN:
        what += " before it began to read"
    elif place == WHOLE_BATCH and indices is not None:
        what += f" while it read samples {', '.join(map(str, indices[:_SHOWN]))}"
        what += f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    elif place >= 0:
        what += f" while it read sample {place}"
    return PreflightError(what, hint)
