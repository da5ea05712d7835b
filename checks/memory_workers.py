"""`memory.workers`: what the loader's workers take of RAM and file descriptors, and how they grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from checks.context import CheckContext, with_settings
from checks.sweep import configured_point, loader_sweep
from preflight.checklist import Check, Hint, Outcome, errored, failed, passed, skipped, warned
from preflight.runs import command_line

if TYPE_CHECKING:
    from bench.memory_outlook import Outlook
    from bench.results import PointResult, SweepResult

# Above this share of the RAM, checkpoints, which pass through it, no longer have room for a copy of even a small model.
_FULL = 0.8
# At which `bench-loader` watches long enough for a slope of some MiB per minute to be told from none.
_WATCH_S = 60


def _workers(context: CheckContext) -> Outcome:
    facts = context.run.facts
    if facts.num_workers == 0:
        return skipped("num_workers is 0: there is no worker to measure")
    result, own = loader_sweep(context), configured_point(context)
    if own is None:
        return _not_started(context, result)
    if own.workers_mib is None or own.pss_mib is None:
        return errored("the memory of the workers could not be measured: the system does not tell it")
    budget = result.memory
    total = budget.baseline_mib + own.workers_mib
    ahead = next((one for one in result.outlooks() if one.num_workers == facts.num_workers), None)
    measured = _figures(result, own, ahead)
    summary = (
        f"{facts.num_workers} workers hold {own.workers_mib / 1024:.2f} GiB ({own.pss_mib:,.0f} MiB PSS each and their "
        f"waiting batches), with the parent {total / 1024:.2f} of {budget.limit_mib / 1024:.1f} GiB "
        f"({budget.limit_source})"
    )
    evidence = _evidence(context, result, own, ahead)
    if total > budget.limit_mib:
        fewer = min(budget.max_workers or 0, facts.num_workers)
        fewer_workers = Hint(text="fewer workers", commands=with_settings(context, f"num_workers={fewer}"))
        return failed(summary, measured=measured, evidence=evidence, hint=fewer_workers)
    why, hint = _other_limit(context, result)
    if why is not None:
        return failed(f"{summary}; {why}", measured=measured, evidence=evidence, hint=hint)
    worry, hint = _worry(context, result, own, ahead, total)
    if worry is not None:
        return warned(f"{summary}: {worry}", measured=measured, evidence=evidence, hint=hint)
    return passed(summary, measured=measured, evidence=evidence)


def _not_started(context: CheckContext, result: SweepResult) -> Outcome:
    facts = context.run.facts
    why = result.not_measured.get(facts.num_workers, "no reason is known")
    _, hint = _other_limit(context, result)
    fewer = Hint(text="fewer workers", commands=with_settings(context, f"num_workers={result.recommended_num_workers}"))
    return failed(f"{facts.num_workers} workers were not even started: {why}", hint=hint or fewer)


def _other_limit(context: CheckContext, result: SweepResult) -> tuple[str | None, Hint | None]:
    """The limit besides RAM that the run's workers meet, and what helps."""
    limits, number = result.memory.limits, context.run.facts.num_workers
    if limits is None:
        return None, None
    fewer = with_settings(context, f"num_workers={result.recommended_num_workers}")
    why = limits.refusal(number)
    if why is not None:
        return why, Hint(text="a higher limit, or fewer workers", commands=("ulimit -n 65536", *fewer))
    why = limits.workers_files_refusal()
    return why, None if why is None else Hint(text="a higher limit", commands=("ulimit -n 65536",))


def _worry(
    context: CheckContext, result: SweepResult, own: PointResult, ahead: Outlook | None, total: float
) -> tuple[str | None, Hint | None]:
    """What will work now and may not later, the gravest first."""
    facts, budget = context.run.facts, result.memory
    half = with_settings(context, f"num_workers={max(1, facts.num_workers // 2)}")
    if ahead is not None and ahead.limit_samples is not None and ahead.limit_min is not None:
        run_samples = facts.batch_size * facts.num_train_steps
        if ahead.limit_samples < run_samples:
            step = int(ahead.limit_samples / facts.batch_size)
            worry = (
                f"they grow by {own.growth_per_min_mib:,.0f} MiB/min each, and reach the limit after "
                f"{ahead.limit_min:,.0f} min at this rate, at about step {step:,} of {facts.num_train_steps:,}"
            )
            advice = (
                "bound the caches of decoders and datasets, hold arrays instead of Python objects (pytorch#13246), "
                "or use fewer workers; see it over a longer time"
            )
            return worry, Hint(text=advice, commands=(_longer(context), *half))
    if own.gpu_workers:
        return (
            f"{own.gpu_workers} of them opened a GPU, of which each takes hundreds of MiB",
            Hint(text="keep transforms in numpy, or let JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES= hold in workers"),
        )
    if total > _FULL * budget.limit_mib:
        return (
            "little is left for checkpoints, which pass through host RAM",
            Hint(text="fewer workers", commands=half),
        )
    return None, None


def _figures(result: SweepResult, own: PointResult, ahead: Outlook | None) -> dict[str, Any]:
    budget, low_high = result.memory, own.growth_ci95_mib
    return {
        "pss_per_worker_mib": _rounded(own.pss_mib),
        "uss_per_worker_mib": _rounded(own.uss_mib),
        "workers_mib": _rounded(own.workers_mib),
        "baseline_mib": _rounded(budget.baseline_mib),
        "limit_mib": _rounded(budget.limit_mib),
        "binds_first": budget.binds_first,
        "max_workers_by": budget.max_workers_by,
        "growth_per_min_mib": _rounded(own.growth_per_min_mib),
        "growth_ci95_mib": None if low_high is None else [round(value, 1) for value in low_high],
        "epoch_peak_mib": _rounded(ahead.epoch_peak_mib) if ahead is not None else None,
        "minutes_to_limit": _rounded(ahead.limit_min) if ahead is not None else None,
        "dataset_pickled_mib": _rounded(budget.pickled_mib),
        "worker_descriptors": own.worker_descriptors,
        "jax_workers": own.jax_workers,
        "gpu_workers": own.gpu_workers,
    }


def _evidence(context: CheckContext, result: SweepResult, own: PointResult, ahead: Outlook | None) -> tuple[str, ...]:
    from bench.notes import LARGE_PICKLED_MIB, growth_text

    watched_s = 60 * own.watched_min
    if ahead is not None and ahead.growing is None and own.growth_per_min_mib is not None:
        lines = [f"growth: {growth_text(own, ahead)}; this shows it: {_longer(context)}"]
    elif ahead is None or ahead.growing is None:
        lines = [f"growth was not measured in {watched_s:.0f} s after warm-up; this does: {_longer(context)}"]
    else:
        lines = [f"growth: {growth_text(own, ahead)}"]
    budget = result.memory
    if budget.binds_first not in (None, "ram"):
        number = budget.max_workers_by[budget.binds_first or ""]
        lines.append(f"file descriptors: enough for {number} workers, fewer than RAM has room for")
    if budget.pickled_mib is not None and budget.pickled_mib > LARGE_PICKLED_MIB:
        lines.append(
            f"every worker is sent a copy of the dataset, {budget.pickled_mib:,.0f} MiB when pickled: keep tables in "
            "files and open them in the worker, as Arrow or numpy memory maps"
        )
    if own.jax_workers:
        lines.append(
            f"{own.jax_workers} of {own.num_workers} workers loaded JAX; with JAX_PLATFORMS=cpu, as set for them, it "
            "takes RAM and nothing of a GPU"
        )
    return tuple(lines)


def _longer(context: CheckContext) -> str:
    facts = context.run.facts
    return command_line(facts, "bench-loader", "--workers", str(facts.num_workers), "--max-seconds", str(_WATCH_S))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


CHECK = Check(
    id="memory.workers",
    title="The loader's workers fit in RAM",
    level="standard",
    severity="fail",
    requires=("data.sample", "loader.first-batch"),
    exclusive=True,
    failures=("F26", "F27", "F28", "F29", "F52"),
    timeout_s=240,
    run=_workers,
    doc="Starts the configured number of workers, lets them load, and measures the memory of each (PSS: "
    "shared pages divided among those who map them) and of the batches that wait in shared memory. Their "
    "sum and the parent's are compared with MemAvailable and the cgroup's limit, whichever is tighter; the "
    "files that the parent and each worker need with RLIMIT_NOFILE. "
    "Where the workers were watched for long enough, the slope of their memory is given with its 95 % interval; they "
    "count as growing where that lies above zero and still does over the later half of the time, and a limit that they "
    "reach before the run's last step is warned of. Says when workers have loaded JAX or opened a GPU, and when what "
    "each is sent of the dataset is large.",
)
