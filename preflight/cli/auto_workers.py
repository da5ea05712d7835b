"""`train --auto-workers`: the number of loader workers, measured before the run starts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from preflight.errors import PreflightError

if TYPE_CHECKING:
    from bench.demand import Demand
    from preflight.runs import Run

# A few seconds a point: what is chosen among differs by more than what a long measurement would tell apart.
_SECONDS_A_POINT = 6.0


def measured_workers(run: Run, *, seconds_a_point: float = _SECONDS_A_POINT) -> int | None:
    """Measures the loader with one worker, a worker for every other core and one for each, and says what it chose.

    Args:
        run: Its own number of workers is measured, too.
        seconds_a_point: For each number, from its first batches to its last.

    Returns:
        The number to use; None where the loader could not be measured: the checks say what is wrong with it.
    """
    from bench.sweep import sweep
    from preflight.cli.cache import prepare_frames
    from preflight.data.loader import start_worker_server
    from preflight.telemetry.cpus import usable_cpus

    facts, cores = run.facts, max(1, int(usable_cpus().count))
    try:
        start_worker_server(facts.worker_modules)
        prepare_frames(run)
        demand = _demand(run)
        result = sweep(
            run.dataset(),
            batch_size=facts.batch_size,
            workers=tuple({1, max(1, cores // 2), cores, max(1, facts.num_workers)}),
            max_seconds=seconds_a_point,
            seed=facts.seed,
            demand_samples_per_s=None if demand is None else demand.samples_per_s,
            demand_source=None if demand is None else demand.source,
            run_samples=facts.batch_size * facts.num_train_steps,
        )
    except PreflightError as error:
        sys.stderr.write(f"--auto-workers: the loader could not be measured: {error.message}\n")
        return None
    sys.stdout.write(f"Workers: {result.reason}\n\n")
    return result.recommended_num_workers


def _demand(run: Run) -> Demand | None:
    """What a step on the GPU that is here consumes at the least; None without one."""
    from bench.demand import Demand
    from checks.context import CheckContext
    from checks.device import judged_device, roofline_source, step_roofline

    context = CheckContext(run=run)
    bounds = step_roofline(context)
    if bounds is None or not bounds.tells:
        return None
    return Demand(bounds.demand_samples_per_s[0], roofline_source(judged_device(context)))
