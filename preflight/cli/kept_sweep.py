"""The sweep of `bench-loader`, of which nothing is lost when it is interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.comparison import Comparison
    from bench.demand import Demand
    from bench.results import Dataset, PartialSweep, PointResult, SweepResult
    from preflight.runs import Run


def measured(
    run: Run,
    counts: tuple[int, ...],
    *,
    max_seconds: float,
    demand: Demand | None,
    cold: bool,
    as_json: bool,
    output: Path | None,
) -> SweepResult:
    """The sweep of a run's loader; where it ends before its time, what there is of it is printed.

    Args:
        run: Whose samples are loaded.
        counts: Numbers of workers.
        max_seconds: For each.
        demand: What the training step consumes, where known.
        cold: Whether the dataset's files are dropped from the page cache before each slice.
        as_json: Whether to print JSON; else a table.
        output: Holds what is known so far after each slice, as JSON with `complete` false.

    Raises:
        UsageError: `cold` with samples that come from no files that are known, or an impossible argument.
        PreflightError: The dataset or a worker failed.
    """
    from bench.attribution import ATTRIBUTION_S
    from bench.page_cache import dataset_files
    from bench.results import PartialSweep
    from bench.sweep import sweep
    from bench.table import render_table
    from preflight.telemetry.environment import environment

    facts, samples = run.facts, run.dataset()
    dataset = _described(run, len(samples))
    partial = PartialSweep(
        batch_size=facts.batch_size,
        environment=environment(),
        points=(),
        asked=counts,
        demand_samples_per_s=None if demand is None else demand.samples_per_s,
        demand_source=None if demand is None else demand.source,
        config=facts.name,
        stack=facts.stack,
        dataset=dataset,
    )

    def keep(point: PointResult) -> None:
        nonlocal partial
        others = [other for other in partial.points if other.num_workers != point.num_workers]
        points = sorted([*others, point], key=lambda one: one.num_workers)
        partial = dataclasses.replace(partial, points=tuple(points))
        if output is not None:
            from preflight.whole_file import is_replaceable, write_whole

            # A full disk is no reason to stop measuring; the last writing says so.
            with suppress(OSError):
                if is_replaceable(output):
                    write_whole(output, json_text(partial).encode())

    try:
        result = sweep(
            samples,
            batch_size=facts.batch_size,
            workers=counts,
            max_seconds=max_seconds,
            seed=facts.seed,
            demand_samples_per_s=None if demand is None else demand.samples_per_s,
            demand_source=None if demand is None else demand.source,
            config=facts.name,
            stack=facts.stack,
            on_point=keep,
            files=dataset_files(root) if (root := _folder(run)) is not None else (),
            cold=cold,
            attribution_s=min(ATTRIBUTION_S, max_seconds),
            run_samples=facts.batch_size * facts.num_train_steps,
        )
    except BaseException:
        if partial.points:
            sys.stdout.write(json_text(partial) if as_json else render_table(partial))
            sys.stdout.flush()
        raise
    return dataclasses.replace(result, dataset=dataset)


def _folder(run: Run) -> Path | None:
    """The dataset's, where the samples come from one that can be looked at."""
    from preflight.errors import NotCovered

    try:
        return run.source()
    except NotCovered:
        return None


def _described(run: Run, frames: int) -> Dataset:
    from bench.results import Dataset
    from preflight.data.metadata import read_info
    from preflight.errors import DataError, NotCovered

    try:
        root = run.source()
    except NotCovered as reason:
        return Dataset(frames=frames, description=reason.message)
    if root is None:
        return Dataset(frames=frames, description="samples are made up, without a dataset")
    version = None
    with suppress(DataError):  # the run's own reader has opened it
        version = read_info(root).codebase_version
    return Dataset(frames=frames, root=_without_home(root), codebase_version=version)


def _without_home(path: Path) -> str:
    # Results are shown to others, and a home is named after a person.
    text, home = os.path.realpath(path), os.path.realpath(os.path.expanduser("~"))
    return f"~{text[len(home) :]}" if text.startswith(f"{home}/") and home != "/" else text


def json_text(result: SweepResult | PartialSweep, comparison: Comparison | None = None) -> str:
    """The document that is printed, written and described by bench_loader.schema.json."""
    document = result.to_json()
    if comparison is not None:
        document["comparison"] = comparison.to_json()
    return json.dumps(document, indent=2) + "\n"
