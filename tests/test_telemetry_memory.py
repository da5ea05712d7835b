import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preflight.telemetry.memory import MemoryLimit, available_memory, process_memory, tree_pids

GIB = 1 << 30
MIB = 1 << 20


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 16 GiB, 12 of them available, its process in no control group."""
    proc = tmp_path / "proc"
    write(proc / "meminfo", f"MemTotal: {16 * MIB} kB\nMemFree: 1 kB\nMemAvailable: {12 * MIB} kB\nHugePages_Total: 0")
    (proc / "self").mkdir()
    (proc / "self/cgroup").touch()
    return proc


def v2_group(folder: Path, limit: object, current: int, inactive_file: int) -> None:
    write(folder / "memory.max", limit)
    write(folder / "memory.current", current)
    write(folder / "memory.stat", f"anon 1\nfile 2\ninactive_file {inactive_file}\nactive_file 3")


def test_touched_memory_shows_in_uss() -> None:
    before = process_memory(os.getpid())
    held = np.ones(100 * MIB, np.uint8)
    after = process_memory(os.getpid())
    assert before is not None
    assert after is not None
    assert (after.uss - before.uss) / MIB == pytest.approx(held.nbytes / MIB, abs=10)
    assert after.pss is not None
    assert after.uss <= after.pss <= after.rss


def test_uss_agrees_with_psutil() -> None:
    import psutil

    child = subprocess.Popen([sys.executable, "-c", "x = bytearray(30 << 20); print(1, flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        ours, theirs = process_memory(child.pid), psutil.Process(child.pid).memory_full_info()
        child.communicate(b"\n")
    assert ours is not None
    assert (ours.pss, ours.uss, ours.rss) == (theirs.pss, theirs.uss, pytest.approx(theirs.rss, abs=MIB))


def test_a_kernel_without_smaps_rollup_falls_back_to_psutil(tmp_path: Path) -> None:
    memory = process_memory(os.getpid(), proc=tmp_path)
    direct = process_memory(os.getpid())
    assert memory is not None
    assert direct is not None
    assert memory.uss == pytest.approx(direct.uss, rel=0.05)


def test_a_vanished_process_and_a_zombie_have_no_memory() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_memory(child.pid) is None  # a zombie until it is waited for
    child.wait()
    assert process_memory(child.pid) is None
    assert tree_pids(child.pid) == ()


def test_tree_pids_names_grandchildren() -> None:
    program = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); input(); p.kill()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert tree_pids(child.pid) == (child.pid, grandchild)
        assert {child.pid, grandchild} < set(tree_pids(os.getpid()))
        child.communicate(b"\n")


def test_without_a_group_the_machine_binds(proc: Path, tmp_path: Path) -> None:
    assert available_memory(proc=proc, cgroup=tmp_path) == MemoryLimit(12 * GIB, 16 * GIB, "MemAvailable")


def test_v2_limit_counts_use_without_reclaimable_cache(proc: Path, tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    write(cgroup / "cgroup.controllers", "memory")
    write(proc / "self/cgroup", "0::/pod/box")
    v2_group(cgroup / "pod/box", 8 * GIB, 6 * GIB, 5 * GIB)
    limit = available_memory(proc=proc, cgroup=cgroup)
    assert limit == MemoryLimit(7 * GIB, 8 * GIB, "cgroup v2 memory.max (/pod/box)")


def test_a_tighter_group_above_binds(proc: Path, tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    write(cgroup / "cgroup.controllers", "memory")
    write(proc / "self/cgroup", "0::/pod/box")
    v2_group(cgroup / "pod/box", "max", 1 * GIB, 0)
    v2_group(cgroup / "pod", 4 * GIB, 3 * GIB, 1 * GIB)
    limit = available_memory(proc=proc, cgroup=cgroup)
    assert limit == MemoryLimit(2 * GIB, 4 * GIB, "cgroup v2 memory.max (/pod)")


def test_a_roomy_group_leaves_the_machine_binding(proc: Path, tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    write(cgroup / "cgroup.controllers", "memory")
    write(proc / "self/cgroup", "0::/")
    v2_group(cgroup, 64 * GIB, 0, 0)
    assert available_memory(proc=proc, cgroup=cgroup).source == "MemAvailable"


def test_a_group_over_its_limit_has_nothing_left(proc: Path, tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    write(cgroup / "cgroup.controllers", "memory")
    write(proc / "self/cgroup", "0::/box")
    v2_group(cgroup / "box", 1 * GIB, 2 * GIB, 0)
    assert available_memory(proc=proc, cgroup=cgroup).available_bytes == 0


def test_v1_limit(proc: Path, tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    write(proc / "self/cgroup", "8:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc")
    folder = cgroup / "memory/docker/abc"
    write(folder / "memory.limit_in_bytes", 4 * GIB)
    write(folder / "memory.usage_in_bytes", 3 * GIB)
    write(folder / "memory.stat", f"inactive_file 1\ntotal_inactive_file {2 * GIB}")
    write(cgroup / "memory/memory.limit_in_bytes", 9223372036854771712)
    limit = available_memory(proc=proc, cgroup=cgroup)
    assert limit == MemoryLimit(3 * GIB, 4 * GIB, "cgroup v1 memory.limit_in_bytes (/docker/abc)")


def test_v1_inside_a_container_reads_the_root_of_the_mount(proc: Path, tmp_path: Path) -> None:
    # Without a cgroup namespace the path is the host's and does not exist below the container's mount.
    cgroup = tmp_path / "cgroup"
    write(proc / "self/cgroup", "8:memory:/docker/abc")
    write(cgroup / "memory/memory.limit_in_bytes", 2 * GIB)
    write(cgroup / "memory/memory.usage_in_bytes", 1 * GIB)
    limit = available_memory(proc=proc, cgroup=cgroup)
    assert limit == MemoryLimit(1 * GIB, 2 * GIB, "cgroup v1 memory.limit_in_bytes (/)")


def test_hybrid_version_2_is_found_in_unified(proc: Path, tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    write(proc / "self/cgroup", "1:name=systemd:/\n0::/box")
    v2_group(cgroup / "unified/box", 3 * GIB, 1 * GIB, 0)
    assert available_memory(proc=proc, cgroup=cgroup).source == "cgroup v2 memory.max (/box)"


def test_this_machine_has_memory() -> None:
    limit = available_memory()
    assert 0 < limit.available_bytes <= limit.limit_bytes
