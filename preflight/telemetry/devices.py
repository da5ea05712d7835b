"""GPUs: what the known ones can do, and which ones are here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from preflight.errors import UsageError

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """A GPU that a run can be planned for."""

    name: str  # as given to --target
    title: str  # the product
    memory_bytes: int  # total as NVML (nvidia-smi) reports it, a little off the label on the box
    bf16_flops_per_s: float  # peak of the tensor cores, dense, accumulating in float32
    bandwidth_bytes_per_s: float  # of the device memory
    source: str  # of the peak and the bandwidth


def _spec(name: str, title: str, memory_mib: int, tflops: float, gb_per_s: float, source: str) -> GpuSpec:
    return GpuSpec(
        name=name,
        title=title,
        memory_bytes=memory_mib * _MIB,
        bf16_flops_per_s=tflops * 1e12,
        bandwidth_bytes_per_s=gb_per_s * 1e9,
        source=source,
    )


# NVIDIA's datasheets give the peak with 2:4 sparsity for newer GPUs; here it is halved to the dense figure.
_SPECS = (
    _spec("b200", "NVIDIA B200 SXM", 183_359, 2250, 8000, "NVIDIA Blackwell architecture technical brief, HGX B200"),
    _spec("h200", "NVIDIA H200 SXM 141 GB", 143_771, 989.4, 4800, "NVIDIA H200 datasheet"),
    _spec("h100-80gb", "NVIDIA H100 SXM 80 GB", 81_559, 989.4, 3350, "NVIDIA H100 datasheet"),
    _spec("a100-80gb", "NVIDIA A100 SXM 80 GB", 81_920, 312, 2039, "NVIDIA A100 80GB datasheet"),
    _spec("a100-40gb", "NVIDIA A100 SXM 40 GB", 40_960, 312, 1555, "NVIDIA A100 40GB datasheet"),
    _spec("l40s", "NVIDIA L40S", 46_068, 362.05, 864, "NVIDIA L40S datasheet"),
    _spec("l4", "NVIDIA L4", 23_034, 121, 300, "NVIDIA L4 datasheet"),
    _spec("rtx5090", "NVIDIA GeForce RTX 5090", 32_607, 209.5, 1792, "NVIDIA RTX Blackwell architecture whitepaper"),
    _spec("rtx4090", "NVIDIA GeForce RTX 4090", 24_564, 165.2, 1008, "NVIDIA Ada architecture whitepaper"),
    _spec("rtx3090", "NVIDIA GeForce RTX 3090", 24_576, 71, 936, "NVIDIA Ampere GA102 architecture whitepaper"),
)
GPUS: dict[str, GpuSpec] = {spec.name: spec for spec in _SPECS}


def gpu(name: str) -> GpuSpec:
    """The GPU of that name.

    Args:
        name: A key of ``GPUS``; case, spaces and underscores do not matter.

    Raises:
        UsageError: It is not known; the message lists those that are.
    """
    key = name.strip().lower().replace(" ", "-").replace("_", "-")
    if key in GPUS:
        return GPUS[key]
    flat = {known.replace("-", ""): known for known in GPUS}
    if key.replace("-", "") in flat:
        return GPUS[flat[key.replace("-", "")]]
    near = difflib.get_close_matches(key.replace("-", ""), flat, n=1, cutoff=0.75)
    # "a100" is near two; a name that leaves the size open is answered with all that begin with it.
    beginning = [known for known in GPUS if key and known.startswith(key)]
    meant = beginning or [flat[match] for match in near]
    raise UsageError(
        f"Unknown GPU {name!r}; known are {', '.join(sorted(GPUS))}.",
        hint=f"Did you mean {' or '.join(meant)}?" if meant else None,
    )


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


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before nvidia-ml-py 11.5
