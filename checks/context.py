"""What a check may look at: the run, what was asked on the command line, and probes of the machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

from preflight.runs import Run
from preflight.telemetry.cpus import CpuCount, usable_cpus
from preflight.telemetry.devices import PresentGpu, present_gpus
from preflight.telemetry.memory import MemoryLimit, available_memory

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probes:
    """How the machine is asked; a test puts a function of its own in the place of one."""

    cpus: Callable[[], CpuCount] = usable_cpus
    memory: Callable[[], MemoryLimit] = available_memory
    gpus: Callable[[], list[PresentGpu]] = present_gpus
    disk_free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free  # bytes
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckContext:
    """The subject of a checklist.

    What several checks need and only one should pay for (the traced model, the measured sweep) is made through `once`.
    """

    run: Run
    target: str | None = None  # name of the GPU to judge memory by, None for what is present
    expect: Mapping[str, Any] = field(default_factory=dict)  # dotted config key -> the value it must have
    folder: Path | None = None  # the run folder of a training that is about to start
    overwrite: bool = False
    resume: bool = False
    probes: Probes = Probes()
    _made: dict[str, Any] = field(default_factory=dict, repr=False)
    _locks: dict[str, threading.Lock] = field(default_factory=dict, repr=False)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Makes a value at most once, whichever check asks first; the others wait for it."""
        with self._locks.setdefault(key, threading.Lock()):
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]


def with_settings(context: CheckContext, *assignments: str) -> tuple[str]:
    """The command that checks the run with other settings, for a hint."""
    changes = " ".join(f"--set {assignment}" for assignment in assignments)
    return (f"preflight check {context.run.facts.reference} {changes}",)
