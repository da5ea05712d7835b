"""The short loader sweep that `loader.*` and `memory.workers` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checks.context import CheckContext

if TYPE_CHECKING:
    from bench.results import PointResult, SweepResult

# Seconds a point: enough for an interval of a few per cent, short enough for a checklist.
_MAX_SECONDS = 4.0
_ATTRIBUTION_S = 2.0


def loader_sweep(context: CheckContext) -> SweepResult:
    """Measures the loader at the run's own number of workers and at a few; once for all checks."""

    def measure() -> SweepResult:
        from bench.page_cache import dataset_files
        from bench.sweep import sweep

        facts = context.run.facts
        # The run's own number, and others to compare it with: two, and a worker a core.
        workers = {
            facts.num_workers,
            min(2, max(1, facts.num_workers)),
            min(8, max(1, int(context.probes.cpus().count))),
        }
        folder = context.run.source()
        return sweep(
            context.run.dataset(),
            batch_size=facts.batch_size,
            workers=tuple(sorted(workers)),
            max_seconds=_MAX_SECONDS,
            seed=facts.seed,
            files=dataset_files(folder) if folder is not None else (),
            attribution_s=_ATTRIBUTION_S,
        )

    return context.once("loader-sweep", measure)


def configured_point(context: CheckContext) -> PointResult | None:
    """The sweep's point at the run's own number of workers; None where it could not be measured."""
    wanted = context.run.facts.num_workers
    return next((point for point in loader_sweep(context).points if point.num_workers == wanted), None)
