"""`memory.*`: what the run holds, against what the machine has."""

from __future__ import annotations

from checks import memory_checkpoint, memory_device
from checks.context import CheckContext, with_settings
from checks.sweep import configured_point, loader_sweep
from preflight.checklist import Check, Hint, Outcome, errored, failed, passed, skipped, warned


def _workers(context: CheckContext) -> Outcome:
    facts = context.run.facts
    if facts.num_workers == 0:
        return skipped("num_workers is 0: there is no worker to measure")
    result, own = loader_sweep(context), configured_point(context)
    if own is None:
        why = result.not_measured.get(facts.num_workers, "no reason is known")
        return failed(
            f"{facts.num_workers} workers were not even started: {why}",
            hint=Hint(
                text="fewer workers", commands=with_settings(context, f"num_workers={result.recommended_num_workers}")
            ),
        )
    if own.workers_mib is None or own.pss_mib is None:
        return errored("the memory of the workers could not be measured: the system does not tell it")
    budget = result.memory
    total = budget.baseline_mib + own.workers_mib
    measured = {
        "pss_per_worker_mib": round(own.pss_mib, 1),
        "workers_mib": round(own.workers_mib, 1),
        "baseline_mib": round(budget.baseline_mib, 1),
        "limit_mib": round(budget.limit_mib, 1),
        "growth_per_min_mib": own.growth_per_min_mib,
    }
    summary = (
        f"{facts.num_workers} workers hold {own.workers_mib / 1024:.2f} GiB ({own.pss_mib:,.0f} MiB PSS each and their "
        f"waiting batches), with the parent {total / 1024:.2f} of {budget.limit_mib / 1024:.1f} GiB "
        f"({budget.limit_source})"
    )
    if total > budget.limit_mib:
        return failed(
            summary,
            measured=measured,
            hint=Hint(
                text="fewer workers",
                commands=with_settings(context, f"num_workers={min(budget.max_workers or 0, facts.num_workers)}"),
            ),
        )
    if total > 0.8 * budget.limit_mib:
        return warned(
            f"{summary}: little is left for checkpoints, which pass through host RAM",
            measured=measured,
            hint=Hint(
                text="fewer workers", commands=with_settings(context, f"num_workers={max(1, facts.num_workers // 2)}")
            ),
        )
    return passed(summary, measured=measured)


CHECKS = (
    memory_device.CHECK,
    Check(
        id="memory.workers",
        title="The loader's workers fit in RAM",
        level="standard",
        severity="fail",
        requires=("data.sample",),
        exclusive=True,
        failures=("F27", "F28"),
        timeout_s=240,
        run=_workers,
        doc="Starts the configured number of workers, lets them load, and measures the memory of each (PSS: "
        "shared pages divided among those who map them) and of the batches that wait in shared memory. Their "
        "sum and the parent's are compared with MemAvailable and the cgroup's limit, whichever is tighter.",
    ),
    memory_checkpoint.CHECK,
)
