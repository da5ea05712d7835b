"""`preflight bench-loader`: the data loader, measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from preflight.cli.options import (
    ConfigArgument,
    OpenpiOption,
    SetOption,
    StackOption,
    TargetOption,
    judged_for,
    one_of,
    open_run,
    output_file,
)

if TYPE_CHECKING:
    from preflight.runs import Run


def bench_loader(
    config: ConfigArgument = None,
    workers: Annotated[
        str,
        typer.Option(
            "--workers", metavar="N,N,…", help="Numbers of workers to measure; 0 loads in the process itself."
        ),
    ] = "2,4,8",
    stack: StackOption = "auto",
    demand: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--demand", metavar="RATE", help="Samples/s that the training step consumes.", show_default=False),
    ] = None,
    target: TargetOption = None,
    max_seconds: Annotated[float, typer.Option("--max-seconds", metavar="S", help="At most, for each point.")] = 20.0,
    format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="text or json.")] = "text",  # noqa: A002
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", metavar="FILE", help="Also write the JSON there.", show_default=False),
    ] = None,
    openpi: OpenpiOption = None,
    set_: SetOption = [],  # noqa: B006
) -> int:
    """Measure how many samples/s the loader delivers with 2, 4, 8, … workers, and what each costs in RAM."""
    from bench.workers_argument import parse_workers

    one_of("--format", format, ("text", "json"))
    counts = parse_workers(workers)
    from preflight.errors import UsageError

    if not max_seconds > 0:
        raise UsageError(f"--max-seconds must be more than 0, not {max_seconds:g}")
    if demand is not None and not demand > 0:
        raise UsageError(f"--demand must be more than 0, not {demand:g}")
    run, _ = open_run(config, stack, set_, openpi)
    from preflight.data.loader import start_worker_server

    # The server's imports run beside ours.
    start_worker_server(run.facts.worker_modules)
    from bench.sweep import sweep
    from bench.table import render_table

    facts = run.facts
    said = ""
    if demand is None:
        demand, said = _demand_of_the_step(run, target)
    with output_file(output) as file:
        result = sweep(
            run.dataset(),
            batch_size=facts.batch_size,
            workers=counts,
            max_seconds=max_seconds,
            seed=facts.seed,
            demand_samples_per_s=demand,
            config=facts.name,
            stack=facts.stack,
        )
        text = json.dumps(result.to_json(), indent=2) + "\n"
        if file is not None:
            file.write(text)
        sys.stdout.write(text if format == "json" else render_table(result) + said)
    return 0


def _demand_of_the_step(run: Run, target: str | None) -> tuple[float | None, str]:
    """What a step on the target, or on the GPU that is here, consumes at the least; and how that was found."""
    from checks.context import CheckContext
    from checks.device import demand_text, judged_device, step_roofline

    context = CheckContext(run=run, target=judged_for(target))
    bounds = step_roofline(context)
    if bounds is None or not bounds.tells:
        return None, ""
    text = f"Demand: {demand_text(bounds, judged_device(context))}; the lower was asked of the loader.\n"
    return bounds.demand_samples_per_s[0], text
