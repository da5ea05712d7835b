"""What else the machine did during a measurement: other processes, a hypervisor's other guests, the CPUs' clock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cpu_time import cpu_seconds
from preflight.telemetry.memory import tree_pids


@dataclass(frozen=True, kw_only=True)
class MachineReading:
    """The machine's clocks at one moment; CPU seconds since boot, of all CPUs."""

    at: float  # time.perf_counter()
    busy_s: float
    idle_s: float  # waiting for a disk included
    stolen_s: float  # a virtual CPU was ready to run and the hypervisor ran something else
    own_s: float  # this process with all its descendants
    clock_ghz: float | None  # of the fastest CPU at this moment; None where it is not told, as on most virtual machines


@dataclass(frozen=True, kw_only=True)
class MachineUse:
    """The machine over a span of time; CPUs on average."""

    seconds: float
    own_cores: float  # used by this process with all its descendants
    others_cores: float  # used by all other processes
    idle_cores: float
    stolen_cores: float
    clock_ghz: float | None

    @property
    def stolen_share(self) -> float:
        """Of the time that processes wanted to use: what a hypervisor kept for its other guests."""
        wanted = self.own_cores + self.others_cores + self.stolen_cores
        return self.stolen_cores / wanted if wanted else 0.0


def read_machine(*, proc: Path = Path("/proc"), cpus: Path = Path("/sys/devices/system/cpu")) -> MachineReading | None:
    """The machine's clocks now; None where there is no procfs.

    Args:
        proc: Where procfs is mounted.
        cpus: Where the kernel lists the CPUs.
    """
    try:
        # proc(5): user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user and nice already.
        words = (proc / "stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, idle, iowait, irq, softirq, steal = (int(w) / os.sysconf("SC_CLK_TCK") for w in words)
    except (OSError, ValueError):
        return None
    return MachineReading(
        at=time.perf_counter(),
        busy_s=user + nice + system + irq + softirq,
        idle_s=idle + iowait,
        stolen_s=steal,
        own_s=cpu_seconds(tree_pids(os.getpid())),
        clock_ghz=_clock_ghz(cpus),
    )


def machine_use(before: MachineReading | None, after: MachineReading | None) -> MachineUse | None:
    """What the machine did between two readings; None where one is missing."""
    if before is None or after is None or after.at <= before.at:
        return None
    seconds = after.at - before.at

    def per_second(grown: float) -> float:
        return max(0.0, grown / seconds)  # what is counted in ticks of 10 ms may come out below 0

    return MachineUse(
        seconds=seconds,
        own_cores=per_second(after.own_s - before.own_s),
        others_cores=per_second(after.busy_s - before.busy_s - (after.own_s - before.own_s)),
        idle_cores=per_second(after.idle_s - before.idle_s),
        stolen_cores=per_second(after.stolen_s - before.stolen_s),
        clock_ghz=after.clock_ghz,
    )


def mean_use(uses: Sequence[MachineUse]) -> MachineUse | None:
    """Several spans as one, each by its length; None where there are none."""
    if not uses:
        return None
    seconds = sum(one.seconds for one in uses)
    clocks = [one.clock_ghz for one in uses if one.clock_ghz is not None]

    def mean(values: Iterable[float]) -> float:
        return sum(value * one.seconds for value, one in zip(values, uses, strict=True)) / seconds

    return MachineUse(
        seconds=seconds,
        own_cores=mean(one.own_cores for one in uses),
        others_cores=mean(one.others_cores for one in uses),
        idle_cores=mean(one.idle_cores for one in uses),
        stolen_cores=mean(one.stolen_cores for one in uses),
        clock_ghz=sum(clocks) / len(clocks) if clocks else None,
    )


def _clock_ghz(cpus: Path) -> float | None:
    found = []
    for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        try:
            found.append(int(path.read_text()) / 1e6)  # kHz
        except (OSError, ValueError):
            continue
    return max(found, default=None)
