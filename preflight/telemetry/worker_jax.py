"""Whether a process has loaded JAX, and whether it has opened a GPU: of loader workers neither is wanted."""

from __future__ import annotations

import os
from pathlib import Path

# The extension module of jaxlib: `xla_extension.so` up to 0.5, `_jax.so` and `libjax_common.so` since.
_JAX_LIBRARIES = ("jaxlib/xla_extension", "jaxlib/_jax.", "jaxlib/libjax")


def has_jax(pid: int, *, proc: Path = Path("/proc")) -> bool | None:
    """Whether JAX's compiled part is mapped into a process; None where nobody may know.

    Args:
        pid: The process.
        proc: Where procfs is mounted.
    """
    try:
        with open(proc / str(pid) / "maps", encoding="utf-8", errors="replace") as maps:
            return any(any(name in line for name in _JAX_LIBRARIES) for line in maps)
    except OSError:
        return None


def has_gpu(pid: int, *, proc: Path = Path("/proc"), device: str = "/dev/nvidia") -> bool | None:
    """Whether a process has a GPU's device file open; None where nobody may know.

    Every CUDA context opens one, and takes hundreds of MiB of the GPU before any array lies there (grain#820).

    Args:
        pid: The process.
        proc: Where procfs is mounted.
        device: What the names of the device files begin with.
    """
    folder = proc / str(pid) / "fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    for name in names:
        try:
            # nvidia-caps and nvidiactl are opened by NVML as well, which takes nothing of the GPU.
            if os.readlink(folder / name).startswith((*(f"{device}{n}" for n in range(10)), f"{device}-uvm")):
                return True
        except OSError:  # closed since it was listed
            continue
    return False
