"""How a run ended, in one sentence."""

from __future__ import annotations

import datetime
import math
from typing import Any, Literal

from preflight.report.run_numbers import count, duration
from preflight.report.run_read import RunFiles
from preflight.report.run_series import number
from preflight.report.run_view import count_setting, known, last_step

State = Literal["completed", "interrupted", "stopped", "failed", "unfinished", "unknown"]
_STATES: tuple[State, ...] = ("completed", "interrupted", "stopped", "failed")


def run_verdict(files: RunFiles) -> dict[str, Any]:
    """How the run ended.

    Returns:
        ``state``; ``sentence``; ``reason``, what the run itself said of its end, or None; ``planned_steps`` and
        ``last_step``, None where they are not known.
    """
    planned, last = count_setting(files, "num_train_steps"), last_step(files)
    summary = files.summary or {}
    reason = summary.get("reason")
    reason = reason if isinstance(reason, str) and reason.strip() else None
    state = _state(files, planned, last)
    if state not in _STATES:
        reason = None
    return {
        "state": state,
        "sentence": _sentence(state, files, planned, last, reason),
        "reason": reason,
        "planned_steps": planned,
        "last_step": last,
    }


def outdated(files: RunFiles) -> bool:
    """Whether the run went on after its summary was written, and did not come to write another."""
    times = [time for time in files.metrics.times.y if math.isfinite(time)]
    return files.summary_time is not None and bool(times) and max(times) > files.summary_time + 1


def _state(files: RunFiles, planned: int | None, last: int | None) -> State:
    said = (files.summary or {}).get("exit")
    for state in _STATES:
        if said == state and not outdated(files):
            return state
    if last is None:
        return "unknown" if not files.telemetry.times else "unfinished"
    if planned is not None and last >= planned - 1:
        return "completed"  # of a version that wrote no summary
    return "unfinished"


def _sentence(state: State, files: RunFiles, planned: int | None, last: int | None, reason: str | None) -> str:
    where = _where(planned, last)
    why = f": {reason.strip().rstrip('.')}" if reason else ""
    kept = f" Newest checkpoint: step {count(max(files.checkpoints))}." if files.checkpoints else ""
    none = "" if files.checkpoints else " No checkpoint is kept."
    if state == "completed":
        seconds = known(number((files.summary or {}).get("seconds")))
        spent = f" in {duration(seconds)}" if seconds is not None and len(files.metrics.starts) < 2 else ""
        if planned is not None and last is not None and last < planned - 1:
            return f"Completed, says the summary; the last step in the log is {count(last)} of {count(planned)}."
        done = planned if planned is not None else None if last is None else last + 1
        return f"Completed{'' if done is None else f': all {count(done)} steps'}{spent}.{none}"
    if state == "interrupted":
        return f"Interrupted{where}{why}.{kept}{none}"
    if state == "stopped":
        return f"Stopped by the watch{where}{why}.{kept}{none}"
    if state == "failed":
        return f"Failed{where}{why}.{kept}{none}"
    if state == "unfinished" and last is not None:
        times = [time for time in files.metrics.times.y if math.isfinite(time)]
        at = f", logged {_utc(max(times))}" if times else ""
        return f"Unfinished{where}{at}: the run is still going, or was killed before it could say why.{kept}{none}"
    if state == "unfinished":
        return f"Not known how it ended: no metrics were kept here, only telemetry.{kept}{none}"
    return f"Not known how it ended: no step was logged here.{kept}{none}"


def _where(planned: int | None, last: int | None) -> str:
    if last is None:
        return " before any step was logged"
    # Steps count from 0.
    return f" at step {count(last)}" + (f" of {count(planned)}" if planned is not None else "")


def _utc(time: float) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return "at no known time"
