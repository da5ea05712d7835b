"""The success criteria of a run, each met or not, with the figure that says so."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any, Literal

from preflight.report.run_milestones import kept_steps, milestone_steps, save_steps
from preflight.report.run_numbers import count, figure, percent
from preflight.report.run_pictures import picture_fault
from preflight.report.run_read import RunFiles
from preflight.report.run_trend import falling
from preflight.report.run_verdict import run_verdict
from preflight.report.run_view import (
    count_setting,
    has_gpu,
    last_step,
    loader_rate,
    pace,
    setting,
    within,
)

Outcome = Literal["met", "not-met", "not-applicable", "not-known"]
Judged = tuple[Outcome, str]

# The thresholds of the checklist that this project began with: an openpi fine-tune of pi0 on one GPU.
EARLY_STEPS, MEDIUM_STEPS = 100, 1000
LOSS_RANGE = (0.001, 0.1)
STEPS_PER_SEC = 10.0
GPU_BUSY = 0.9
GRAD_NORM_MOST, GRAD_MAX_MOST = 10.0, 100.0
SPEEDUP, BASELINE_WORKERS = 3.0, 2
EXTENDED = (
    "loss_std", "loss_max", "loss_min", "grad_max", "grad_mean", "update_norm", "update_ratio",
    "efficiency/steps_per_sec", "efficiency/samples_per_sec", "efficiency/time_per_step",
)  # fmt: skip
_NO_LOG: Judged = ("not-known", "no step was logged")


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A question to a run, and who answers it."""

    phase: Literal["immediate", "medium-term", "long-term"]
    text: str
    judge: Callable[[RunFiles], Judged]


def judged_criteria(files: RunFiles) -> list[dict[str, Any]]:
    """Each criterion's ``phase``, ``text``, ``outcome`` and ``seen``, the figure behind it."""
    rows = []
    for criterion in CRITERIA:
        outcome, seen = criterion.judge(files)
        rows.append({"phase": criterion.phase, "text": criterion.text, "outcome": outcome, "seen": seen})
    return rows


def _starts(files: RunFiles) -> Judged:
    if files.metrics.times.x:
        return "met", f"step {count(files.metrics.times.x[0])} was logged"
    if run_verdict(files)["state"] == "failed":
        return "not-met", "the run failed before a step was logged"
    return _NO_LOG


def _loss_range(files: RunFiles) -> Judged:
    early = files.metrics.of("loss")
    values = [y for x, y in zip(early.x, early.y, strict=True) if x <= EARLY_STEPS]
    if not values:
        return _NO_LOG
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values):
        return "not-met", f"{len(values) - len(finite)} of {len(values)} early losses are no finite number"
    low, high = LOSS_RANGE
    seen = f"{figure(min(finite))} to {figure(max(finite))} up to step {count(min(EARLY_STEPS, early.x[-1]))}"
    return ("met" if low <= min(finite) and max(finite) <= high else "not-met"), seen


def _fast(files: RunFiles) -> Judged:
    seen = pace(files, EARLY_STEPS)
    if seen is None:
        return "not-known", "no pace was logged in these steps"
    if seen >= STEPS_PER_SEC:
        return "met", f"{figure(seen)} steps/s (median)"
    if has_gpu(files) is False:
        return "not-applicable", f"{figure(seen)} steps/s on a CPU; the figure is meant for a GPU"
    return "not-met", f"{figure(seen)} steps/s (median)"


def _gpu_busy(files: RunFiles) -> Judged:
    if has_gpu(files) is False:
        return "not-applicable", "the run had no GPU"
    times = [y for x, y in zip(files.metrics.times.x, files.metrics.times.y, strict=True) if x <= EARLY_STEPS]
    times = [time for time in times if math.isfinite(time)]
    if len(times) < 2:
        return "not-known", "fewer than two steps were logged with their time"
    shares = []
    for index in files.telemetry.gpus():
        found = within(files.telemetry.of(f"gpus/{index}/utilization_percent"), times[0], times[-1])
        if found:
            shares.append(statistics.fmean(found) / 100)
    if not shares:
        return "not-known", "no GPU's utilisation was sampled in these steps"
    which = "" if len(shares) == 1 else f" on the idlest of {len(shares)} GPUs"
    return ("met" if min(shares) > GPU_BUSY else "not-met"), f"{percent(min(shares))} on average{which}"


def _logged(files: RunFiles) -> Judged:
    if not files.metrics.times.x:
        return _NO_LOG
    names = _expected_names(files)
    missing = [name for name in names if name not in files.metrics.series]
    if missing == list(names[-3:]) and len(files.metrics.times.x) == 1:
        return "not-known", "one step was logged, and the pace is known from the second on"
    if missing:
        return "not-met", f"never logged: {', '.join(missing)}"
    seen = f"all {len(names)} names are in metrics.jsonl"
    if files.wandb_offline:
        return "not-known", f"{seen}; wandb ran offline, and whether it was uploaded is not seen here"
    if files.wandb_id is not None:
        return "met", f"{seen}; wandb run {files.wandb_id} (its server is not asked)"
    if setting(files, "wandb_enabled") is False:
        return "not-applicable", f"wandb is switched off; {seen}"
    return "not-known", f"{seen}; no wandb run was recorded"


def _falls(files: RunFiles) -> Judged:
    if (early := _too_early(files)) is not None:
        return early
    series = files.metrics.of("loss")
    values = series.finite()
    found = falling(values)
    if found is None:
        return "not-known", f"{len(values)} finite losses are too few for a trend"
    seen = (
        f"median {figure(found.first)} in the first quarter, {figure(found.last)} in the last; "
        f"Kendall's tau {found.tau:+.2f} over {found.blocks} block medians"
    ).replace("-", "−")
    return ("met" if found.falls else "not-met"), seen


def _stable(files: RunFiles) -> Judged:
    if (early := _too_early(files)) is not None:
        return early
    norms, peaks = files.metrics.of("grad_norm"), files.metrics.of("grad_max")
    if not norms.y:
        return "not-known", "grad_norm was not logged"
    for name, series in (("grad_norm", norms), ("grad_max", peaks)):
        wrong = next((x for x, y in zip(series.x, series.y, strict=True) if not math.isfinite(y)), None)
        if wrong is not None:
            return "not-met", f"{name} was not finite at step {count(wrong)}"
    after = [y for x, y in zip(norms.x, norms.y, strict=True) if x >= MEDIUM_STEPS]
    largest = [y for x, y in zip(peaks.x, peaks.y, strict=True) if x >= MEDIUM_STEPS]
    seen = f"grad_norm at most {figure(max(after))}" + (f", grad_max {figure(max(largest))}" if largest else "")
    calm = max(after) <= GRAD_NORM_MOST and max(largest, default=0.0) <= GRAD_MAX_MOST
    return ("met" if calm else "not-met"), f"{seen}, from step {count(MEDIUM_STEPS)} on"


def _first_view(files: RunFiles) -> Judged:
    if 0 in files.pictures:
        name, fault = f"camera_views/{files.pictures[0].name}", picture_fault(files.pictures[0])
        return ("met", name) if fault is None else ("not-met", f"{name} is {fault}")
    return ("not-met", "no picture of step 0") if files.metrics.times.x else _NO_LOG


def _speedup(files: RunFiles) -> Judged:
    workers = setting(files, "num_workers")
    own, base = loader_rate(files, workers), loader_rate(files, BASELINE_WORKERS)
    if workers == BASELINE_WORKERS:
        return "not-applicable", f"the run itself has {BASELINE_WORKERS} workers"
    if own is None or base is None:
        return "not-known", f"the checklist did not measure the loader with {BASELINE_WORKERS} workers and the run's"
    ratio = own[0] / base[0]
    seen = f"{ratio:.1f} times: {figure(own[0])} samples/s with {workers} workers, {figure(base[0])} with two"
    return ("met" if ratio >= SPEEDUP else "not-met"), f"{seen} (the loader alone)"


def _completes(files: RunFiles) -> Judged:
    verdict = run_verdict(files)
    starts = len(files.metrics.starts)
    times = f" in {starts} starts" if starts > 1 else ""
    last = "" if verdict["last_step"] is None else f", last step {count(verdict['last_step'])}"
    if verdict["state"] in ("unfinished", "unknown"):
        return "not-known", f"no end was recorded{last}"
    return ("met" if verdict["state"] == "completed" else "not-met"), f"{verdict['state']}{last}{times}"


def _all_views(files: RunFiles) -> Judged:
    return _all_there(files, milestone_steps(files.config), set(files.pictures), "picture")


def _all_saves(files: RunFiles) -> Judged:
    expected, saves = kept_steps(files.config), save_steps(files.config)
    outcome, seen = _all_there(files, expected, set(files.checkpoints), "checkpoint")
    replaced = 0 if expected is None or saves is None else len(saves) - len(expected)
    return outcome, seen + (f"; {replaced} more are replaced by the next, as keep_period says" if replaced else "")


def _all_there(files: RunFiles, expected: list[int] | None, found: set[int], what: str) -> Judged:
    if expected is None:
        return "not-known", f"config.json does not say which; {len(found)} {what}(s) found"
    last = last_step(files)
    if last is None:
        return _NO_LOG
    finished = run_verdict(files)["state"] not in ("unfinished", "unknown")
    due = [step for step in expected if finished or step <= last]
    missing = [step for step in due if step not in found]
    there = f"{len(due) - len(missing)} of {len(expected)} {what}s"
    if not missing:
        return ("met", there) if len(due) == len(expected) else ("not-known", f"{there}, the others were not due yet")
    # The newest one may be on its way, or wait for the end of the run.
    if not finished and what == "checkpoint":
        return "not-known", f"{there}, and the run has not ended"
    return "not-met", f"{there}; missing: step {', '.join(map(count, missing[:5]))}{', …' if len(missing) > 5 else ''}"


def _all_metrics(files: RunFiles) -> Judged:
    lines = len(files.metrics.times.x)
    if not lines:
        return _NO_LOG
    starts = len(files.metrics.starts)
    holes, odd = [], 0
    for name in _expected_names(files):
        series = files.metrics.of(name)
        wanted = lines - starts if name.startswith("efficiency/") else lines
        if len(series.y) < wanted:
            holes.append(f"{name} in {len(series.y)}")
        odd += sum(not math.isfinite(y) for y in series.y)
    if holes:
        return "not-met", f"of {count(lines)} records: {', '.join(holes[:4])}{', …' if len(holes) > 4 else ''}"
    if odd:
        return "not-met", f"in all {count(lines)} records, but {count(odd)} of the values not finite"
    state = run_verdict(files)["state"]
    seen = f"all names in all {count(lines)} records"
    return ("met", seen) if state == "completed" else ("not-known", f"{seen} so far; the run is not completed")


def _expected_names(files: RunFiles) -> tuple[str, ...]:
    # With gradients gathered over more steps than a log interval has, some intervals have no update.
    gathered, interval = (count_setting(files, n) or 1 for n in ("gradient_accumulation_steps", "log_interval"))
    names = tuple(n for n in EXTENDED if gathered <= interval or not n.startswith("update_"))
    return (*(("ema_distance",) if isinstance(setting(files, "ema_decay"), float) else ()), *names)


def _too_early(files: RunFiles) -> Judged | None:
    planned, last = count_setting(files, "num_train_steps"), last_step(files)
    if planned is not None and planned <= MEDIUM_STEPS:
        return "not-applicable", f"the run is laid out for {count(planned)} steps"
    if last is None:
        return _NO_LOG
    return ("not-known", f"the run got to step {count(last)}") if last < MEDIUM_STEPS else None


CRITERIA = (
    Criterion("immediate", "Training starts without an error", _starts),
    Criterion("immediate", "Losses make sense: {} to {}".format(*LOSS_RANGE), _loss_range),
    Criterion("immediate", f"At least {STEPS_PER_SEC:.0f} steps/s", _fast),
    Criterion("immediate", f"GPU busy more than {GPU_BUSY:.0%} of the time", _gpu_busy),
    Criterion("immediate", "The extended metrics are logged, and wandb was started", _logged),
    Criterion("medium-term", "The loss falls", _falls),
    Criterion(
        "medium-term",
        f"Gradients are stable: grad_norm at most {GRAD_NORM_MOST:.0f}, grad_max at most {GRAD_MAX_MOST:.0f}",
        _stable,
    ),
    Criterion("medium-term", "Camera views of step 0 can be seen", _first_view),
    Criterion("medium-term", f"Loading is at least {SPEEDUP:.0f} times as fast as with two workers", _speedup),
    Criterion("long-term", "The run completes without a crash", _completes),
    Criterion("long-term", "Camera views at every milestone", _all_views),
    Criterion("long-term", "All extended metrics over the whole run", _all_metrics),
    Criterion("long-term", "Checkpoints at the steps to be kept", _all_saves),
)
