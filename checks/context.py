"""What a check may look at: the run, what was asked on the command line, and probes of the machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from preflight.data.hub import HubDataset, ask_hub
from preflight.runs import Run, command_line
from preflight.telemetry.cpus import CpuCount, usable_cpus
from preflight.telemetry.devices import PresentGpu, present_gpus
from preflight.telemetry.memory import MemoryLimit, available_memory
from preflight.telemetry.network import unreachable
from preflight.telemetry.targets import GpuSpec, Target

if TYPE_CHECKING:
    from preflight.training.device_compile import StepMemory
    from preflight.training.device_trial import Trial
    from preflight.training.lowered import LoweredStep

T = TypeVar("T")


def _compile(step: LoweredStep, device: GpuSpec | str) -> StepMemory:
    from preflight.training.device_compile import compile_step_for

    return compile_step_for(step, device)


def _trial(variables: Mapping[str, str]) -> Trial:
    from preflight.training.device_trial import try_devices

    return try_devices(variables)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probes:
    """How the machine is asked; a test puts a function of its own in the place of one."""

    cpus: Callable[[], CpuCount] = usable_cpus
    memory: Callable[[], MemoryLimit] = available_memory
    gpus: Callable[[], list[PresentGpu]] = present_gpus
    disk_free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free  # bytes
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    unreachable: Callable[[str, int], str | None] = unreachable  # why a machine does not answer on a port
    hub: Callable[[str], HubDataset | str] = ask_hub  # of a dataset's repo_id; a str says why it could not be asked
    compile: Callable[[LoweredStep, GpuSpec | str], StepMemory] = _compile  # for a GPU, "cuda" (the one here) or "cpu"
    trial: Callable[[Mapping[str, str]], Trial] = _trial  # of the devices, under some variables of the environment


@dataclasses.dataclass(frozen=True)
class _Failure:
    error: Exception


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckContext:
    """The subject of a checklist.

    What several checks need and only one should pay for (the traced model, the measured sweep) is made through `once`.
    """

    run: Run
    level: str = "standard"  # "full" where a check may look at everything instead of a part
    target: Target | None = None  # the GPU to judge the run for, None for what is present
    expect: Mapping[str, Any] = field(default_factory=dict)  # dotted config key -> the value it must have
    folder: Path | None = None  # the run folder of a training that is about to start
    overwrite: bool = False
    resume: bool = False
    probes: Probes = Probes()
    # Told what a long pass goes through, how many it has been through and of how many; from any thread.
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    _made: dict[str, Any] = field(default_factory=dict, repr=False)
    _locks: dict[str, threading.Lock] = field(default_factory=dict, repr=False)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Makes a value at most once, whichever check asks first; the others wait for it."""
        with self._locks.setdefault(key, threading.Lock()):
            if key not in self._made:
                try:
                    self._made[key] = make()
                except Exception as error:
                    # Whoever asks next would fail alike, after the same time.
                    self._made[key] = _Failure(error)
                    raise
            if isinstance(self._made[key], _Failure):
                raise self._made[key].error
            return self._made[key]


def with_settings(context: CheckContext, *assignments: str) -> tuple[str]:
    """The command that checks the run with further settings, for a hint."""
    words = [word for assignment in assignments for word in ("--set", assignment)]
    target = () if context.target is None else ("--target", context.target.text)
    return (command_line(context.run.facts, "check", *words, *target),)


def visible_gpus(context: CheckContext) -> list[PresentGpu]:
    """The GPUs that a training would see: CUDA_VISIBLE_DEVICES may hide some of those that are here."""
    gpus, visible = context.probes.gpus(), context.probes.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    named = [word.strip() for word in visible.split(",")]
    if all(word.isdecimal() for word in named):
        return [gpu for gpu in gpus if str(gpu.index) in named]
    # Empty or -1 hides all; UUIDs cannot be told apart here, but they can be counted.
    return gpus[: len([word for word in named if word not in ("", "-1")])]
