"""What a run and its machine are doing, a line of JSON every two seconds, sampled beside the run."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from preflight.telemetry.gpu_readings import GpuReadings
from preflight.telemetry.memory import available_memory, process_memory

logger = logging.getLogger(__name__)

# Of one core. 0.5 % is promised; what is left of it is for what the thread's own clock does not see, waking it up.
_SHARE = 0.0035
_CLOSE_S = 10.0
_SHORTEST_S = 0.1  # CPU time is counted in ticks of 10 ms: over less, a share would be mostly rounding
_KEPT_LINES = 1800  # an hour of lines that wait for their folder, some 1.5 MB


class _Process(NamedTuple):
    """A line of ``/proc/<pid>/stat``."""

    parent: int
    zombie: bool
    started: int  # clock ticks since boot: tells a process from a later one with the same pid
    own_s: float  # CPU seconds, user and system
    reaped_s: float  # CPU seconds of its children that ended and that it waited for, with theirs


class TelemetrySampler:
    """Samples a process with all its descendants, the machine and its GPUs; without a procfs, no processes.

    Neither command lines nor environment variables are read, since both hold secrets.

    Args:
        pid: The process above all others, "main"; its descendants are "workers".
        nvml: Stands in for the ``pynvml`` module.
        proc: Where procfs is mounted.
        cgroup: Where the control groups are mounted.
    """

    def __init__(
        self, pid: int, *, nvml: Any = None, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
    ) -> None:
        import psutil

        self._net_io_counters = psutil.net_io_counters
        self._pid = pid
        self._proc = proc
        self._cgroup = cgroup
        self._gpus = GpuReadings(nvml)
        self._strangers: set[int] = set()
        self._started: int | None = None
        # The first look reads every process of the machine; the ones after it only those that matter.
        self._tree_before = self._tree()
        if not self._tree_before:
            self._started = -1  # gone already: whoever gets its pid is another
        self._at: float | None = None  # of the sample before, time.monotonic()
        self._cpu_s = self._read_bytes = self._written_bytes = 0.0
        self.memory_cost_s = 0.0  # CPU seconds that the latest reading of PSS took

    def close(self) -> None:
        """Lets go of NVML."""
        self._gpus.close()

    def sample(self, *, folder: Path | None = None, memory: bool = True) -> dict[str, Any]:
        """One sample, of plain values for JSON; what cannot be read is None.

        Args:
            folder: Where the run writes, for the free space there; it need not exist yet.
            memory: Whether to read PSS and USS, which takes about 20 ms for each GiB in 4 KiB pages; their keys are
                left out otherwise.

        Returns:
            - ``time`` (Unix, seconds) and ``interval_s`` since the sample before (None in the first).
            - ``tree``: ``cpu_cores`` used on average since the sample before (None if that was less than 0.1 s ago);
              ``cpu_s``, ``read_bytes`` and ``written_bytes`` (of storage: the page cache is not counted) since its
              processes started, those that ended and were waited for included; ``pss_bytes`` and ``uss_bytes``. None
              once ``pid`` has ended.
            - ``main``: ``cpu_cores``, ``pss_bytes`` and ``uss_bytes`` of ``pid`` alone.
            - ``workers``: ``count``, and in sum ``cpu_cores``, ``pss_bytes`` and ``uss_bytes`` of the descendants.
            - ``network``: ``received_bytes`` and ``sent_bytes`` of the whole machine without its loopback, since boot.
            - ``disk``: ``free_bytes`` below ``folder``.
            - ``host_memory``: ``available_bytes`` and ``limit_bytes``, as `available_memory` has them.
            - ``gpus``: a list, as `GpuReadings.read` has it.
        """
        at, tree = time.monotonic(), self._tree()
        interval_s = None if self._at is None else at - self._at
        sample: dict[str, Any] = {
            "time": round(time.time(), 3),
            "interval_s": None if interval_s is None else round(interval_s, 3),
            **self._processes(tree, interval_s),
            "network": _or_none(self._network),
            "disk": {"free_bytes": None if folder is None else _or_none(lambda: _free_bytes(folder))},
            "host_memory": _or_none(self._host_memory),
            "gpus": self._gpus.read(),
        }
        if memory and tree:
            self._add_memory(sample, tree)
        self._at, self._tree_before = at, tree
        return sample

    def _processes(self, tree: dict[int, _Process], interval_s: float | None) -> dict[str, Any]:
        if not tree:
            return {"tree": None, "main": None, "workers": None}
        # What a process used is its own until it ends, then its parent's, which waited for it: summed over the tree it
        # only grows, whoever comes and goes. Parents are read first, so that one who ends in between is missed rather
        # than counted twice; the sum then falls, and is held until the next sample sets it right.
        cpu_s = max(self._cpu_s, sum(process.own_s + process.reaped_s for process in tree.values()))
        main_cores = cores = None
        if interval_s is not None and interval_s >= _SHORTEST_S:
            main_s = self._used_since(self._pid, tree)
            # The living alone are the lower bound: children that nobody waits for are never added to a parent.
            living_s = sum(self._used_since(pid, tree) for pid in tree)
            main_cores = round(main_s / interval_s, 3)
            cores = round(max(cpu_s - self._cpu_s, living_s) / interval_s, 3)
        self._cpu_s = cpu_s
        read, written = self._storage_bytes(tree)
        return {
            "tree": {"cpu_cores": cores, "cpu_s": round(cpu_s, 2), "read_bytes": read, "written_bytes": written},
            "main": {"cpu_cores": main_cores},
            "workers": {
                "count": sum(not process.zombie for process in tree.values()) - (not tree[self._pid].zombie),
                "cpu_cores": None if cores is None or main_cores is None else round(cores - main_cores, 3),
            },
        }

    def _used_since(self, pid: int, tree: dict[int, _Process]) -> float:
        now, before = tree[pid], self._tree_before.get(pid)
        return now.own_s - before.own_s if before and before.started == now.started else now.own_s

    def _storage_bytes(self, tree: dict[int, _Process]) -> tuple[int | None, int | None]:
        read = written = 0
        for pid in tree:
            try:
                lines = (self._proc / str(pid) / "io").read_text().splitlines()
                counts = {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
                read += counts["read_bytes"]
                written += counts["write_bytes"]
            except (FileNotFoundError, ProcessLookupError):
                if pid == self._pid:  # the kernel does not count, or the run has just ended
                    return None, None
                continue
            except (OSError, KeyError, ValueError):  # somebody else's: a sum without it would be too small
                return None, None
        # As with CPU seconds, these too become the parent's when a child has been waited for.
        self._read_bytes, self._written_bytes = max(self._read_bytes, read), max(self._written_bytes, written)
        return int(self._read_bytes), int(self._written_bytes)

    def _add_memory(self, sample: dict[str, Any], tree: dict[int, _Process]) -> None:
        began = time.thread_time()
        pss: dict[int, int | None] = {}
        uss: dict[int, int | None] = {}
        for pid, process in tree.items():
            found = process_memory(pid, proc=self._proc)
            if found is None and (process.zombie or (now := self._stat(pid)) is None or now.zombie):
                continue  # it holds nothing any more
            pss[pid], uss[pid] = (None, None) if found is None else (found.pss, found.uss)
        for name, values in (("pss_bytes", pss), ("uss_bytes", uss)):
            sample["tree"][name] = _sum(values.values())
            sample["main"][name] = values.get(self._pid)
            sample["workers"][name] = _sum(value for pid, value in values.items() if pid != self._pid)
        self.memory_cost_s = time.thread_time() - began

    def _tree(self) -> dict[int, _Process]:
        """The process and its living or unreaped descendants, parents before their children; empty once it is gone."""
        try:
            pids = sorted(int(name) for name in os.listdir(self._proc) if name.isdigit())
        except OSError:
            return {}
        # A big machine has thousands of processes, and asking each for its parent at every sample would cost more than
        # all the rest. Who descends from another stays so, except that a pid may be used anew; within one period, no.
        self._strangers.intersection_update(pids)
        stats = {pid: stat for pid in pids if pid not in self._strangers and (stat := self._stat(pid))}
        root = stats.get(self._pid)
        if root is None or self._started not in (None, root.started):
            return {}
        self._started = root.started
        tree = {self._pid: root}
        for first in stats:
            chain: list[int] = []
            above = first
            while above in stats and above not in tree and above not in chain:
                chain.append(above)
                above = stats[above].parent
            if above in tree:
                tree.update((pid, stats[pid]) for pid in reversed(chain))
            elif above == 0 or above in self._strangers:
                self._strangers.update(chain)
            # Otherwise its parent came or went during the look: the next one will tell.
        return tree

    def _stat(self, pid: int) -> _Process | None:
        try:
            line = (self._proc / str(pid) / "stat").read_bytes()
        except OSError:
            return None
        # proc_pid_stat(5). The name, which may be any bytes, ends at the last bracket; the field after it is number 3.
        fields = line.rpartition(b")")[2].split()
        ticks = [int(fields[number - 3]) for number in (14, 15, 16, 17)]
        per_s = os.sysconf("SC_CLK_TCK")
        return _Process(
            parent=int(fields[4 - 3]),
            zombie=fields[0] in (b"Z", b"X"),
            started=int(fields[22 - 3]),
            own_s=(ticks[0] + ticks[1]) / per_s,
            reaped_s=(ticks[2] + ticks[3]) / per_s,
        )

    def _host_memory(self) -> dict[str, int]:
        limit = available_memory(proc=self._proc, cgroup=self._cgroup)
        # Its source may hold a container's id or a user's name, and is not for every line.
        return {"available_bytes": limit.available_bytes, "limit_bytes": limit.limit_bytes}

    def _network(self) -> dict[str, int]:
        cards = [counts for name, counts in self._net_io_counters(pernic=True).items() if name != "lo"]
        return {
            "received_bytes": sum(counts.bytes_recv for counts in cards),
            "sent_bytes": sum(counts.bytes_sent for counts in cards),
        }


class TelemetryWriter:
    """Appends samples to a file from ``__enter__`` to ``__exit__``, the first and the last moment included.

    It runs in a thread of its own and takes less than 0.5 % of one core: memory is read less often than the rest where
    that is expensive, and all of it less often than asked where that does not suffice. Nothing that goes wrong in it
    reaches the run: a file that cannot be written ends the writing with one warning.

    A folder that does not exist is never made, since a training script may refuse to find it there. Until it appears,
    the latest hour of samples waits. A script that empties its folder at the start must have done so before `open`.

    Args:
        pid: The process above all others of the run.
        path: The file; where None, everything waits for `open`.
        period_s: Time between samples.
        on_sample: Called in the thread with each sample, for example to log `numbers` of it.
        nvml: Stands in for the ``pynvml`` module.
    """

    def __init__(
        self,
        pid: int,
        path: Path | None = None,
        *,
        period_s: float = 2.0,
        on_sample: Callable[[dict[str, Any]], None] | None = None,
        nvml: Any = None,
    ) -> None:
        self._pid = pid
        self._path = path
        self._period_s = period_s
        self._on_sample = on_sample
        self._nvml = nvml
        self._lines: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self._writable = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> TelemetryWriter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # A driver or a network disk can block for ever; the run does not wait for them.
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            logger.warning("Telemetry did not end within %g s and is left behind", _CLOSE_S)
        elif self._lines:
            where = f"the folder of {self._path} never appeared" if self._path else "it was given no file"
            logger.info("Telemetry was not written: %s", where)

    def open(self, path: Path) -> None:
        """From the next sample on, appends to this file, first what has waited."""
        self._path = path

    def _run(self) -> None:
        try:
            sampler = TelemetrySampler(self._pid, nvml=self._nvml)
        except Exception as error:  # noqa: BLE001  (a run goes on without telemetry)
            logger.warning("No telemetry: %r", error)
            return
        memory_due, first, ending = 0.0, True, False
        while not ending:
            ending = self._stop.is_set()
            began = time.thread_time()
            memory = time.monotonic() >= memory_due
            try:
                self._take(sampler, memory)
            except Exception as error:  # noqa: BLE001
                logger.warning("Telemetry ends: %r", error)
                break
            if not self._writable and self._on_sample is None:
                break
            memory_cost_s = sampler.memory_cost_s if memory else 0.0
            rest_s = time.thread_time() - began - memory_cost_s
            # The first sample is several times as dear as the others, and says nothing about them.
            wait_s = self._period_s if first else max(self._period_s, rest_s / (_SHARE / 2))
            first = False
            if memory:
                memory_due = time.monotonic() + memory_cost_s / (_SHARE - min(rest_s / wait_s, _SHARE / 2))
            self._stop.wait(wait_s)
        sampler.close()

    def _take(self, sampler: TelemetrySampler, memory: bool) -> None:
        path = self._path
        sample = sampler.sample(folder=path.parent if path else None, memory=memory)
        if self._writable:
            self._lines.append(json.dumps(sample, allow_nan=False).encode() + b"\n")
            if path is not None:
                self._write(path)
        if self._on_sample is not None:
            try:
                self._on_sample(sample)
            except Exception as error:  # noqa: BLE001
                logger.warning("Telemetry goes to its file alone from now on: %r", error)
                self._on_sample = None

    def _write(self, path: Path) -> None:
        data = b"".join(self._lines)
        try:
            # Opened anew each time: a folder that was deleted and made again is written to, not the deleted file.
            with path.open("ab", buffering=0) as file:
                end = file.tell()
                if file.write(data) < len(data):
                    file.truncate(end)  # half a line would break whoever reads the file
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning("Telemetry is no longer written to %s: %s", path, error.strerror)
            self._writable = False
        self._lines.clear()


def numbers(sample: dict[str, Any], prefix: str = "telemetry") -> dict[str, float]:
    """A sample as wandb takes it: numbers only, under flat names such as ``telemetry/gpus/0/power_w``.

    What is None or text is left out. Each throttle reason that holds is a name of its own, with the value 1.
    """
    found: dict[str, float] = {}
    for key, value in sample.items():
        name = f"{prefix}/{key}"
        if isinstance(value, dict):
            found |= numbers(value, name)
        elif key == "gpus":
            for gpu in value:
                found |= numbers({k: v for k, v in gpu.items() if k != "index"}, f"{name}/{gpu['index']}")
        elif key == "throttle_reasons":
            found |= {f"{name}/{reason}": 1 for reason in value or ()}
        elif isinstance(value, int | float) and key != "time":
            found[name] = value
    return found


def _or_none(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, KeyError, ValueError):
        return None


def _free_bytes(folder: Path) -> int:
    folder = folder.absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
