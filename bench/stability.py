"""Why a point's rate is uncertain, and what helps: from what the machine did meanwhile and how the rounds went."""

from __future__ import annotations

from collections.abc import Sequence

from bench.machine_use import MachineUse, mean_use
from bench.statistics import UNSTABLE_RELATIVE_HALF_WIDTH, Estimate, block_rates, rounds_apart

# Less of a CPU than this is what any machine does beside.
_NOTABLE_CORES = 0.1
# A clock that differs by less between rounds follows the load.
_NOTABLE_CLOCK = 0.10


def is_unstable(samples_per_s: Estimate) -> bool:
    """Whether a rate's interval is too wide to choose by."""
    return samples_per_s.relative_half_width > UNSTABLE_RELATIVE_HALF_WIDTH


def likely_reasons(
    intervals_s: Sequence[Sequence[float]], num_workers: int, machine: Sequence[MachineUse]
) -> tuple[str, ...]:
    """Sentences, each with a likely reason and what helps against it; none where nothing stands out.

    Args:
        intervals_s: Batch intervals of each round, in seconds.
        num_workers: Of the point.
        machine: What the machine did in each round, as far as that could be read.
    """
    mean = mean_use(machine)
    found = [_others(mean), _steal(mean)] if mean else []
    found += [_clock(machine), _drift(intervals_s, num_workers)]
    return tuple(sentence for sentence in found if sentence)


def _others(mean: MachineUse) -> str | None:
    # Other processes do no harm while CPUs are idle; on average less than one idle is at times none.
    if mean.others_cores < _NOTABLE_CORES or mean.idle_cores >= 1:
        return None
    return (
        f"Other processes kept {mean.others_cores:.1f} CPUs busy and {mean.idle_cores:.1f} were idle: "
        "close them and measure again."
    )


def _steal(mean: MachineUse) -> str | None:
    if mean.stolen_cores < _NOTABLE_CORES:
        return None
    return (
        f"The hypervisor gave {mean.stolen_cores:.1f} of this machine's CPUs to others (steal time): measure at "
        "another hour, or on a machine of its own."
    )


def _clock(machine: Sequence[MachineUse]) -> str | None:
    clocks = [one.clock_ghz for one in machine if one.clock_ghz is not None]
    if len(clocks) < 2 or min(clocks) > (1 - _NOTABLE_CLOCK) * max(clocks):
        return None
    return (
        f"The CPUs ran at {min(clocks):.1f} to {max(clocks):.1f} GHz: let the machine cool, or fix its clock "
        "(cpupower frequency-set -g performance)."
    )


def _drift(intervals_s: Sequence[Sequence[float]], num_workers: int) -> str | None:
    rounds = [block_rates(one, batch_size=1, num_workers=num_workers) for one in intervals_s]
    medians = rounds_apart(*rounds)
    if medians is None:
        return None
    apart = f"its slowest round had {min(medians) / max(medians):.0%} of the fastest one's rate"
    if list(medians) == sorted(medians):
        return (
            f"Each round was faster than the one before ({apart}), as where files come into the page cache: repeat it."
        )
    if list(medians) == sorted(medians, reverse=True):
        return f"Each round was slower than the one before ({apart}): something fills up, heats up or grows."
    return f"The rounds lie apart beyond their intervals ({apart}): something else comes and goes on this machine."
