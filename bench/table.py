"""A sweep's result as plain text for the terminal."""

from __future__ import annotations

import io

from bench.comparison import Comparison, PointComparison
from bench.decision import workers_text
from bench.notes import notes
from bench.results import PartialSweep, PointResult, SweepResult
from bench.stability import is_unstable
from bench.statistics import TARGET_RELATIVE_HALF_WIDTH

# Outliers are worth a line where an epoch takes so much longer than the median rate says.
_NOTABLE_EXCESS = 0.05


def render_table(result: SweepResult | PartialSweep, *, width: int = 100) -> str:
    """Points as a table, then the recommendation and the memory line; no colour, no control characters.

    Args:
        result: Of ``bench.sweep``, or what is left of one.
        width: Columns that text is wrapped to.
    """
    import rich.box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in (
        "workers",
        "samples/s [95 %]",
        "interval ms\np50 / p95 / p99",
        "first\nbatch s",
        "CPU\ncores",
        "PSS MiB\na worker",
        "USS MiB\na worker",
        "growth\nMiB/min",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    recommended = None if isinstance(result, PartialSweep) else result.recommended_num_workers
    for point in result.points:
        mark = "> " if point.num_workers == recommended else ""
        table.add_row(
            f"{mark}{point.num_workers}",
            f"{point.samples_per_s}",
            " / ".join(_milliseconds(point.batch_interval_s[name]) for name in ("p50", "p95", "p99")),
            f"{point.first_batch_s:.1f}",
            f"{point.cpu_cores_used:.2f}",
            _whole(point.pss_mib),
            _whole(point.uss_mib),
            _growth(point),
        )
    if isinstance(result, PartialSweep):
        lines = [_partial_line(result)]
    else:
        lines = [f"Recommended: {result.reason}", _memory_line(result), *notes(result)]
    lines += [_outlier_line(point) for point in result.points if point.outliers.excess_share >= _NOTABLE_EXCESS]
    lines += [_unstable_line(point) for point in result.points if is_unstable(point.samples_per_s)]
    # Written to a buffer, as the caller decides where it goes; a given width does not ask for a terminal.
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None, highlight=False)
    console.print(table)
    for line in lines:
        console.print(Text(line))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip("\n").splitlines()) + "\n"


def render_comparison(comparison: Comparison) -> str:
    """A line for each number of workers, or for each thing that keeps two results from being compared."""
    named = f"Against the baseline {comparison.baseline}"
    if not comparison.comparable:
        lines = [f"  {one.field}: {one.here} here, {one.there} there" for one in comparison.differences]
        return "\n".join([f"{named}: not comparable, these differ.", *lines]) + "\n"
    differing = "; ".join(f"{note.field} {note.here} here, {note.there} there" for note in comparison.notes)
    lines = [f"{named} ({differing}):" if differing else f"{named}:"]
    lines += [f"  {workers_text(point.num_workers)}: {_against(point)}" for point in comparison.points]
    lines += [f"  {workers_text(number)}: not in the baseline" for number in comparison.unmatched]
    return "\n".join(lines) + "\n"


def _against(point: PointComparison) -> str:
    ratio = point.ratio
    text = (
        f"{point.verdict}, {ratio.median:.2f}x [{ratio.lo:.2f}, {ratio.hi:.2f}] "
        f"(samples/s: {point.here} against {point.there})"
    )
    if point.memory_verdict not in (None, "no difference"):
        (pss, old_pss), (uss, old_uss) = point.pss_mib, point.uss_mib
        text += (
            f"; {point.memory_verdict} RAM a worker, {_whole(pss)} MiB PSS and {_whole(uss)} USS "
            f"against {_whole(old_pss)} and {_whole(old_uss)}"
        )
    if is_unstable(ratio):
        text += "; too unstable to build on"
    return text


def _partial_line(result: PartialSweep) -> str:
    measured = {point.num_workers for point in result.points}
    missing = [str(number) for number in result.asked if number not in measured]
    reached = f"; {', '.join(missing)} workers were not reached" if missing else ""
    return f"Partial: the sweep ended before its time{reached}. These figures are less certain, nothing is recommended."


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 0.01 else f"{seconds * 1e3:.1f}"


def _whole(mib: float | None) -> str:
    return "-" if mib is None else f"{mib:.0f}"


def _growth(point: PointResult) -> str:
    """The slope with twice its standard error; a slope within that is none that could be told from zero.

    In brackets where it is that of the first seconds, in which caches fill.
    """
    if point.growth_per_min_mib is None or point.growth_error_mib is None:
        return "-"
    if abs(point.growth_per_min_mib) <= 2 * point.growth_error_mib:
        return f"0 ±{2 * point.growth_error_mib:.0f}"
    if point.growth_lasting is None:
        return f"({point.growth_per_min_mib:+.0f})"
    return f"{point.growth_per_min_mib:+.0f} ±{2 * point.growth_error_mib:.0f}"


def _memory_line(result: SweepResult) -> str:
    memory = result.memory
    limit = f"{memory.limit_mib / 1024:.1f} GiB ({memory.limit_source})"
    if memory.per_worker_mib is None:
        return f"Memory: {memory.baseline_mib:.0f} MiB in this process, of {limit}; no worker was measured."
    return (
        f"Memory: {memory.baseline_mib:.0f} MiB without workers and {memory.per_worker_mib:.0f} MiB for each, "
        f"of {limit}: room for {memory.max_workers} workers."
    )


def _outlier_line(point: PointResult) -> str:
    found = point.outliers
    kinds = [f"{number} {name}" for number, name in ((found.mild, "mild"), (found.severe, "severe")) if number]
    turn = "batch" if point.num_workers <= 1 else f"turn of {point.num_workers} batches"
    return (
        f"Outliers: {workers_text(point.num_workers)}, {' and '.join(kinds)} among {found.turns}; the slow ones took "
        f"{found.excess_share:.0%} of the time beyond a usual {turn}. The median leaves that out, an epoch does not."
    )


def _unstable_line(point: PointResult) -> str:
    reasons = point.unstable_because or ("Close what else runs on this machine, or give it more time (--max-seconds).",)
    return (
        f"Unstable: {workers_text(point.num_workers)} varied by ±{point.samples_per_s.relative_half_width:.0%} "
        f"(aim: {TARGET_RELATIVE_HALF_WIDTH:.0%}). {' '.join(reasons)}"
    )
