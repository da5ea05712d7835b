"""How much memory a process holds, and how much is left before the kernel kills one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from preflight.telemetry.cgroups import ControlGroup, own_groups

# A version 1 group without a limit says LONG_MAX rounded down to pages; nothing real comes near 2^60 bytes.
_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of one process, in bytes."""

    pss: int | None  # proportional set size: shared pages divided among those who map them; None: not to be had here
    uss: int  # unique set size: what would be freed if the process ended
    rss: int  # resident set size: counts shared pages in full, hence too much when summed


@dataclass(frozen=True)
class MemoryLimit:
    """The limit that binds first."""

    available_bytes: int  # what can still be taken
    limit_bytes: int  # the whole: RAM of the machine or the group's limit
    source: str  # "MemAvailable", "cgroup v2 memory.max (/path)" or "cgroup v1 memory.limit_in_bytes (/path)"


def process_memory(pid: int, *, proc: Path = Path("/proc")) -> ProcessMemory | None:
    """Memory of one process from ``/proc/<pid>/smaps_rollup``; psutil where the kernel has no such file.

    Returns:
        None if the process is gone, is a zombie or belongs to somebody else.
    """
    try:
        text = (proc / str(pid) / "smaps_rollup").read_text()
    except FileNotFoundError:
        # Either the process is gone or the kernel is older than 4.14 or not Linux; psutil tells them apart.
        return _psutil_memory(pid)
    except OSError:  # ended while it was read, or somebody else's
        return None
    kib: dict[str, int] = {}
    for line in text.splitlines()[1:]:
        name, _, value = line.partition(":")
        if value.endswith("kB"):
            kib[name] = int(value.split()[0])
    if "Pss" not in kib:  # a zombie has an empty map
        return None
    private = sum(kib.get(name, 0) for name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb"))
    return ProcessMemory(pss=kib["Pss"] * 1024, uss=private * 1024, rss=kib["Rss"] * 1024)


def _psutil_memory(pid: int) -> ProcessMemory | None:
    import psutil

    try:
        full = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return None
    return ProcessMemory(pss=getattr(full, "pss", None), uss=full.uss, rss=full.rss)


def tree_pids(pid: int) -> tuple[int, ...]:
    """A process and all its descendants that live now, itself first; empty if it is gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        return (pid, *(child.pid for child in process.children(recursive=True)))
    except psutil.Error:
        return ()


def available_memory(*, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> MemoryLimit:
    """The tighter of the machine's MemAvailable and every control group above this process.

    A group's use counts without ``inactive_file``, the page cache that the kernel drops before it kills anything: a
    loader that has read a dataset would otherwise seem to have filled the group.

    Args:
        proc: Where procfs is mounted.
        cgroup: Where the control groups are mounted.
    """
    limits = [machine_memory(proc=proc)]
    limits += [limit for group in own_groups("memory", proc=proc, cgroup=cgroup) if (limit := _group_memory(group))]
    return min(limits, key=lambda limit: limit.available_bytes)


def machine_memory(*, proc: Path = Path("/proc")) -> MemoryLimit:
    """RAM of the whole machine, whatever a control group grants of it."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        import psutil

        memory = psutil.virtual_memory()
        return MemoryLimit(memory.available, memory.total, "MemAvailable")
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) > 1}
    return MemoryLimit(kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024, "MemAvailable")


def _group_memory(group: ControlGroup) -> MemoryLimit | None:
    if group.version == 2:
        limit_file, usage_file, cache_key = "memory.max", "memory.current", "inactive_file"
    else:
        # Without the prefix, version 1 counts the group alone; its limit covers the groups below as well.
        limit_file, usage_file, cache_key = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    try:
        limit_text = (group.folder / limit_file).read_text().strip()
        if limit_text == "max" or int(limit_text) >= _UNLIMITED:
            return None
        usage = int((group.folder / usage_file).read_text())
    except OSError:  # the root group has no limit files
        return None
    limit = int(limit_text)
    try:
        stat = dict(line.split(maxsplit=1) for line in (group.folder / "memory.stat").read_text().splitlines())
        usage -= int(stat.get(cache_key, 0))
    except OSError:
        pass  # then the page cache counts as used: too careful rather than too bold
    return MemoryLimit(max(0, limit - usage), limit, f"cgroup v{group.version} {limit_file} ({group.path})")
