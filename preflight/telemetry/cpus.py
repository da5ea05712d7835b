"""How many CPUs this process may really use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from preflight.telemetry.cgroups import ControlGroup, own_groups


@dataclass(frozen=True)
class CpuCount:
    """CPUs that this process may use."""

    count: float  # a quota may be fractional
    source: str  # "affinity", "cgroup v2 cpu.max (/path)" or "cgroup v1 cpu.cfs_quota_us (/path)"


def usable_cpus(*, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> CpuCount:
    """The tighter of the scheduler's affinity mask and every control group's CPU quota.

    ``os.cpu_count()`` counts the machine, so a container granted 4 of 128 CPUs would start far too many workers.

    Args:
        proc: Where procfs is mounted.
        cgroup: Where the control groups are mounted.
    """
    counts = [CpuCount(float(_affinity()), "affinity")]
    counts += [count for group in own_groups("cpu", proc=proc, cgroup=cgroup) if (count := _quota(group))]
    return min(counts, key=lambda count: count.count)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(group: ControlGroup) -> CpuCount | None:
    try:
        if group.version == 2:
            name = "cpu.max"
            quota, period = (group.folder / name).read_text().split()
        else:
            name = "cpu.cfs_quota_us"
            quota = (group.folder / name).read_text().strip()
            period = (group.folder / "cpu.cfs_period_us").read_text()
    except OSError:
        return None
    if quota in ("max", "-1"):
        return None
    return CpuCount(int(quota) / int(period), f"cgroup v{group.version} {name} ({group.path})")
