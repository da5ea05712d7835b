import os
from pathlib import Path

import pytest

from preflight.telemetry.cpus import CpuCount, usable_cpus


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cpus(proc=tmp_path, cgroup=tmp_path) == CpuCount(len(os.sched_getaffinity(0)), "affinity")


def test_the_tightest_v2_quota_above_binds(tmp_path: Path) -> None:
    write(tmp_path / "self/cgroup", "0::/pod/box")
    write(tmp_path / "cgroup.controllers", "cpu")
    write(tmp_path / "pod/box/cpu.max", "max 100000")
    write(tmp_path / "pod/cpu.max", "50000 100000")
    assert usable_cpus(proc=tmp_path, cgroup=tmp_path) == CpuCount(0.5, "cgroup v2 cpu.max (/pod)")


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_v1_quota_of_jointly_mounted_controllers(tmp_path: Path, mount: str) -> None:
    write(tmp_path / "self/cgroup", "4:cpu,cpuacct:/box")
    write(tmp_path / mount / "box/cpu.cfs_quota_us", "25000")
    write(tmp_path / mount / "box/cpu.cfs_period_us", "100000")
    write(tmp_path / mount / "cpu.cfs_quota_us", "-1")
    write(tmp_path / mount / "cpu.cfs_period_us", "100000")
    assert usable_cpus(proc=tmp_path, cgroup=tmp_path) == CpuCount(0.25, "cgroup v1 cpu.cfs_quota_us (/box)")
