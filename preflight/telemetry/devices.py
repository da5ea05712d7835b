"""Which GPUs are here, as NVML sees them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PresentGpu:
    """A GPU of this machine, as NVML sees it."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    driver: str  # version of the driver


def present_gpus(nvml: Any = None) -> list[PresentGpu]:
    """The GPUs of this machine; an empty list where there is no NVIDIA driver.

    Reads NVML and takes no memory on the device, unlike asking jax. ``CUDA_VISIBLE_DEVICES`` is not applied.

    Args:
        nvml: Stands in for the ``pynvml`` module.
    """
    if nvml is None:
        try:
            import pynvml
        except ImportError:
            return []
        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        found = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            found.append(
                PresentGpu(
                    index=index,
                    name=_text(nvml.nvmlDeviceGetName(handle)),
                    total_bytes=int(memory.total),
                    free_bytes=int(memory.free),
                    driver=driver,
                )
            )
        return found
    except nvml.NVMLError:
        return []  # a driver that is being replaced, or a GPU that fell off the bus
    finally:
        nvml.nvmlShutdown()


def quiet_idle_plugin() -> None:
    """Before jax is imported: spares a machine without a GPU the traceback with which JAX's CUDA plugin says so.

    Whoever installs the plugin for its compiler alone (extra `aot`) would see it at every command.
    """
    try:
        installed = any(find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13))
    except ModuleNotFoundError:
        return
    if installed and not present_gpus():
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before nvidia-ml-py 11.5
