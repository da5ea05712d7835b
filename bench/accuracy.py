"""A measured figure against the known truth: the criteria of `bench.selftest`."""

from __future__ import annotations

from dataclasses import dataclass

from bench.decision import workers_text
from bench.machine_use import mean_use
from bench.results import PointResult

# What is to be met; of the memory, the larger one.
RATE_TOLERANCE = 0.03
MEMORY_TOLERANCE, MEMORY_TOLERANCE_MIB = 0.05, 10.0
SLOPE_TOLERANCE = 0.10

_SLOPE_UNIT = "MiB/min a worker"
_NOTABLE_CORES = 0.05  # less is used by any system
_NOTABLE_STEAL = 0.005


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One figure against its truth."""

    what: str
    unit: str
    truth: float | str
    measured: float | str
    ci95: tuple[float, float] | None = None
    error: float | None = None  # relative to the truth
    met: bool
    note: str | None = None


def judge_rate(what: str, truth: float, point: PointResult, *, cores: float | None = None) -> Finding:
    """Samples/s: the median within 3 % of the truth.

    Its interval is that of one measurement's own scatter; it does not say how far the loader's own work, about 1 %,
    keeps it from a truth of samples that load themselves.

    Args:
        what: Names the dataset.
        truth: Samples/s of a machine that does nothing else.
        point: As measured.
        cores: How many this process may use, where the truth needs some.
    """
    rate = point.samples_per_s
    error = rate.median / truth - 1
    return Finding(
        what=f"{what}, {workers_text(point.num_workers)}",
        unit="samples/s",
        truth=truth,
        measured=rate.median,
        ci95=(rate.lo, rate.hi),
        error=error,
        met=abs(error) <= RATE_TOLERANCE,
        note=_company(point, cores),
    )


def judge_memory(what: str, truth_mib: float, measured_mib: float) -> Finding:
    """MiB, within 10 MiB or 5 %."""
    off = abs(measured_mib - truth_mib)
    return Finding(
        what=what,
        unit="MiB a worker",
        truth=truth_mib,
        measured=measured_mib,
        error=measured_mib / truth_mib - 1,
        met=off <= max(MEMORY_TOLERANCE_MIB, MEMORY_TOLERANCE * truth_mib),
    )


def judge_slope(what: str, truth: float, point: PointResult) -> Finding:
    """MiB/min of one worker, within 10 %; a sweep that gives no slope misses it."""
    slope = point.growth_per_min_mib
    if slope is None:
        return Finding(what=what, unit=_SLOPE_UNIT, truth=truth, measured="no slope", met=False)
    return Finding(
        what=what,
        unit=_SLOPE_UNIT,
        truth=truth,
        measured=slope,
        ci95=point.growth_ci95_mib,
        error=slope / truth - 1,
        met=abs(slope / truth - 1) <= SLOPE_TOLERANCE,
        note=_company(point),
    )


def _company(point: PointResult, cores: float | None = None) -> str | None:
    """What else ran meanwhile, where it was anything."""
    mean = mean_use(point.machine)
    if mean is None:
        return None
    notes = []
    if mean.others_cores >= _NOTABLE_CORES:
        note = f"other processes used {mean.others_cores:.2f} CPUs"
        free = float("inf") if cores is None else max(0.0, cores - mean.others_cores - mean.stolen_cores)
        if cores is not None and free < (1 - mean.stolen_share) * min(point.num_workers, cores):
            note += f": {free:.2f} were free for {workers_text(point.num_workers)}, the truth was out of reach"
        notes.append(note)
    if mean.stolen_share >= _NOTABLE_STEAL and cores is not None:
        notes.append(f"the hypervisor kept {mean.stolen_share:.1%} of the CPU time, taken off the truth")
    elif mean.stolen_cores >= _NOTABLE_CORES:
        notes.append(f"the hypervisor kept {mean.stolen_cores:.2f} CPUs")
    return "; ".join(notes) or None


def render(finding: Finding) -> str:
    """A line of the table, and one beneath it where something is to be noted."""

    def number(value: float | str) -> str:
        return value if isinstance(value, str) else f"{value:.{1 if abs(value) < 1000 else 0}f}"

    measured = number(finding.measured)
    if finding.ci95 is not None:
        measured += f" [{number(finding.ci95[0])}, {number(finding.ci95[1])}]"
    error = "" if finding.error is None else f"{finding.error:+.1%}"
    truth = f"{number(finding.truth)} {finding.unit}".strip()
    line = f"{finding.what:50} {truth:24} {measured:26} {error:>7}  {'met' if finding.met else 'MISSED'}"
    return line if finding.note is None else f"{line}\n    ({finding.note})"
