"""What a measurement was taken on: enough to tell whether two results can be compared, nothing that names a person."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

from preflight.telemetry.cpus import usable_cpus
from preflight.telemetry.devices import present_gpus
from preflight.telemetry.memory import machine_memory

# Those whose version changes what is measured here.
PACKAGES = ("robot-preflight", "jax", "flax", "torch", "lerobot", "numpy", "orbax-checkpoint", "wandb", "av")


def environment(
    *, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup"), nvml: Any = None
) -> dict[str, Any]:
    """Machine, interpreter and package versions, as plain values for JSON.

    Versions come from the installed metadata, so that nothing heavy is imported. Host and user names are left out.

    Args:
        proc: Where procfs is mounted.
        cgroup: Where the control groups are mounted.
        nvml: Stands in for the ``pynvml`` module.

    Returns:
        ``python``, ``platform``, ``kernel``, ``cpu``, ``cpus_usable``, ``cpus_source``, ``ram_bytes``, ``gpus`` (a list
        of ``{name, total_bytes, driver}``) and ``packages`` (name to version, None where it is not installed).
    """
    cpus = usable_cpus(proc=proc, cgroup=cgroup)
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "kernel": platform.release(),
        "cpu": _cpu_model(proc),
        "cpus_usable": cpus.count,
        "cpus_source": cpus.source,
        "ram_bytes": machine_memory(proc=proc).limit_bytes,
        "gpus": [
            {"name": found.name, "total_bytes": found.total_bytes, "driver": found.driver}
            for found in present_gpus(nvml)
        ],
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _cpu_model(proc: Path) -> str | None:
    try:
        for line in (proc / "cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):  # "Model" on ARM boards
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
