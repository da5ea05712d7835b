"""`preflight bench-loader`: the data loader, measured."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from preflight.cli.kept_sweep import json_text, measured
from preflight.cli.options import (
    ConfigArgument,
    OpenpiOption,
    SetOption,
    StackOption,
    TargetOption,
    judged_for,
    one_of,
    open_run,
    output_option,
    write_output,
)

if TYPE_CHECKING:
    from bench.demand import Demand
    from bench.results import SweepResult
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
        Optional[str],  # noqa: UP045
        typer.Option(
            "--demand",
            metavar="RATE|RUN_DIR",
            help="Samples/s that the training step consumes, or the folder of an earlier run that measured it.",
            show_default=False,
        ),
    ] = None,
    target: TargetOption = None,
    max_seconds: Annotated[float, typer.Option("--max-seconds", metavar="S", help="At most, for each point.")] = 20.0,
    cold: Annotated[
        bool, typer.Option("--cold", help="Drop the dataset's files from the page cache before each slice.")
    ] = False,
    format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="text or json.")] = "text",  # noqa: A002
    output: Annotated[
        Optional[Path],  # noqa: UP045
        output_option("Also write the JSON there, as far as it is known after each slice of a measurement."),
    ] = None,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--plot", metavar="FILE", help="Draw throughput and RAM there: .svg, .png or .pdf.", show_default=False
        ),
    ] = None,
    save: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--save",
            metavar="NAME",
            help="Keep the result as a baseline: .preflight/bench/NAME.json below this folder, as it belongs to the "
            "project and not into a cache.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--compare",
            metavar="NAME",
            help="Say for each number of workers whether it is faster or slower than in that baseline.",
            show_default=False,
        ),
    ] = None,
    openpi: OpenpiOption = None,
    set_: SetOption = [],  # noqa: B006
) -> int:
    """Measure how many samples/s the loader delivers with 2, 4, 8, … workers, and what each costs in RAM.

    Interrupted with Ctrl-C, or when the dataset fails, it shows what was measured until then. Exit codes: 0 measured,
    2 usage or config, 3 the dataset or a worker failed, 130 interrupted.
    """
    from bench.demand import parse_demand
    from bench.workers_argument import parse_workers

    one_of("--format", format, ("text", "json"))
    counts = parse_workers(workers)
    from preflight.errors import UsageError

    if not max_seconds > 0:
        raise UsageError(f"--max-seconds must be more than 0, not {max_seconds:g}")
    asked = None if demand is None else parse_demand(demand)
    _require_places(output, plot, save)
    from bench.baseline import load_baseline, save_baseline

    baseline = None if compare is None else load_baseline(compare)
    run, _ = open_run(config, stack, set_, openpi)
    from preflight.cli.cache import prepare_frames
    from preflight.data.loader import start_worker_server

    # The server's imports run beside ours.
    start_worker_server(run.facts.worker_modules)
    prepare_frames(run)
    from bench.comparison import compare as compared_with
    from bench.table import render_comparison, render_table

    said = ""
    if asked is None:
        asked, said = _demand_of_the_step(run, target)
    result = measured(
        run, counts, max_seconds=max_seconds, demand=asked, cold=cold, as_json=format == "json", output=output
    )
    comparison = None if baseline is None else compared_with(result, baseline)
    text = json_text(result, comparison)
    table = render_table(result) + said + ("" if comparison is None else render_comparison(comparison))
    sys.stdout.write(text if format == "json" else table)
    sys.stdout.flush()
    if output is not None:
        write_output(output, text)
    if save is not None:
        _say(f"Baseline: {save_baseline(result, save)}")
    if plot is not None:
        _draw(result, plot)
    return 0


def _require_places(output: Path | None, plot: Path | None, save: str | None) -> None:
    """Tries all that is to be written, before anything is measured: a wrong path should cost no minute."""
    from preflight.errors import UsageError
    from preflight.whole_file import require_writable

    if output is not None:
        require_writable("--output", output)
    if plot is not None:
        from bench.plot import require_plottable

        require_plottable("--plot", plot)
        if output is not None and os.path.realpath(output) == os.path.realpath(plot):
            raise UsageError(f"--output and --plot are the same file, {plot}")
    if save is not None:
        from bench.baseline import require_saveable

        require_saveable(save)


def _draw(result: SweepResult, path: Path) -> None:
    from bench.plot import save_plot
    from preflight.errors import UsageError

    try:
        save_plot(result, path)
    except OSError as error:
        raise UsageError(f"--plot {path} cannot be written: {error.strerror or error}") from None
    _say(f"Plot: {path}")


def _say(line: str) -> None:
    with suppress(OSError, AttributeError):  # stderr may be closed, or None
        print(line, file=sys.stderr, flush=True)  # noqa: T201


def _demand_of_the_step(run: Run, target: str | None) -> tuple[Demand | None, str]:
    """What a step on the target, or on the GPU that is here, consumes at the least; and how that was found."""
    from bench.demand import Demand
    from checks.context import CheckContext
    from checks.device import demand_text, judged_device, roofline_source, step_roofline

    context = CheckContext(run=run, target=judged_for(target))
    bounds = step_roofline(context)
    if bounds is None or not bounds.tells:
        return None, ""
    device = judged_device(context)
    text = f"Demand: {demand_text(bounds, device)}; the lower was asked of the loader.\n"
    return Demand(bounds.demand_samples_per_s[0], roofline_source(device)), text
