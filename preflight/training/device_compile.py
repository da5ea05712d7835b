"""What XLA's own compiler says about the train step's memory on a GPU, with or without that GPU.

The compile runs in a process of its own (`compile_child`): the CUDA plugin must not meet the process that checks, and a
compiler that crashes must not take the checklist with it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from preflight.errors import PreflightError

if TYPE_CHECKING:
    from preflight.telemetry.targets import GpuSpec
    from preflight.training.lowered import LoweredStep

# Shared memory of a multiprocessor and of a block that asks for it (bytes), threads and float32 units of a
# multiprocessor: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
_ARCHITECTURES = {
    "7.5": (65_536, 65_536, 1024, 64),
    "8.0": (167_936, 166_912, 2048, 64),
    "8.6": (102_400, 101_376, 1536, 128),
    "8.9": (102_400, 101_376, 1536, 128),
    "9.0": (233_472, 232_448, 2048, 128),
    "10.0": (233_472, 232_448, 2048, 128),
    "12.0": (102_400, 101_376, 1536, 128),
}

# Without a GPU nothing can be timed, so nothing is autotuned; and on jax 0.10.2 Triton's tiling of a matrix product
# that was never tuned can fail ("Couldn't find output tile sizes").
_DEVICELESS_FLAGS = ("--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false")

# jax's plugin 0.5.3 compiles without a GPU but gives no analysis; XLA's own record, which takes time to write, serves.
_WITH_ANALYSIS = (0, 7)

# The step is compiled to learn where its buffers lie, which is settled before any machine code is made. XLA would run
# NVIDIA's assembler on some 400 kernels, for half of the time, and need it installed; this one does nothing.
_ASSEMBLER = """#!/bin/sh
case "$*" in *--version*) echo "Cuda compilation tools, release 12.9, V12.9.86"; exit 0;; esac
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done
"""
_LIBDEVICE = 'target triple = "nvptx64-nvidia-gpulibs"\n'


class CompilerError(PreflightError):
    """The compiler is not installed, too old, or broke: nothing is known, which is no verdict."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of a compiled train step on one of its devices, as XLA assigned them."""

    arguments: int  # state and batch
    outputs: int  # the new state and the metrics
    aliases: int  # outputs that lie where an argument lay
    temporaries: int  # gradients, activations, workspaces: the most at any moment
    compiler: str  # versions of jax and its plugin, and the device compiled for
    seconds: float  # the compile
    rss_mib: float  # the most that the compiling process held

    @property
    def peak(self) -> int:
        """All of it at the worst moment."""
        return self.arguments + self.outputs - self.aliases + self.temporaries


def can_target(spec: GpuSpec) -> bool:
    """Whether a GPU's description says enough for XLA to compile for it."""
    known = (spec.compute_capability, spec.num_sms, spec.l2_cache_kib, spec.boost_clock_mhz)
    return None not in known and spec.compute_capability in _ARCHITECTURES


def _lacking(spec: GpuSpec) -> str:
    needed = ("compute_capability", "num_sms", "l2_cache_kib", "boost_clock_mhz")
    if absent := [key for key in needed if getattr(spec, key) is None]:
        return f"the description of {spec.title} lacks what XLA compiles for: {', '.join(absent)}"
    known = ", ".join(_ARCHITECTURES)
    return f"{spec.title} has compute capability {spec.compute_capability}; preflight can describe {known} to XLA"


def target_config(spec: GpuSpec) -> str:
    """XLA's description of a GPU (`GpuTargetConfigProto` as text), from the fields that all versions since 2025 know.

    Raises:
        ValueError: `can_target` says no.
    """
    if not can_target(spec):
        raise ValueError(_lacking(spec))
    assert spec.compute_capability is not None
    assert spec.l2_cache_kib is not None
    assert spec.boost_clock_mhz is not None
    major, _, minor = spec.compute_capability.partition(".")
    shared, shared_block, threads, units = _ARCHITECTURES[spec.compute_capability]
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": shared,
        "shared_memory_per_block_optin": shared_block,
        "threads_per_core_limit": threads,
        "core_count": spec.num_sms,
        "fpus_per_core": units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(spec.bandwidth_bytes_per_s),
        "l2_cache_size": spec.l2_cache_kib << 10,
        "clock_rate_ghz": spec.boost_clock_mhz / 1000,
        "device_memory_size": spec.memory_bytes,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    lines = "\n".join(f"  {name}: {value}" for name, value in info.items())
    name = spec.title.replace('"', "'").replace("\\", "/")
    return (
        f"gpu_device_info {{\n{lines}\n  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        f'platform_name: "CUDA"\ndnn_version_info {{ major: 9 minor: 8 }}\ndevice_description_str: "{name}"\n'
    )


def compile_step_for(step: LoweredStep, device: GpuSpec | str, *, timeout_s: float = 170.0) -> StepMemory:
    """Compiles a train step for a device and reads where its buffers lie.

    Args:
        step: The traced step.
        device: A GPU that need not be here, "cuda" for the first GPU of this machine, or "cpu".
        timeout_s: Then the compiler is ended.

    Raises:
        CompilerError: Says what is missing and, where that is known, the command that brings it.
    """
    if not isinstance(device, str) and not can_target(device):
        raise CompilerError(_lacking(device))
    with tempfile.TemporaryDirectory(prefix="preflight-") as name:
        folder = Path(name)
        (folder / "step").write_bytes(step.serialize("cpu" if device == "cpu" else "cuda"))
        environ = {**os.environ, "JAX_PLATFORMS": "cuda" if device == "cuda" else "cpu"}
        (folder / "mesh").write_text(json.dumps(step.mesh), encoding="utf-8")
        # As many are compiled for as the step is for, however many a test pretends to have.
        flags = [f for f in environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
        flags += [f"--xla_force_host_platform_device_count={step.num_devices}"] if device == "cpu" else []
        if isinstance(device, str):
            # Looking must not take three quarters of the GPU that is looked at.
            environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        else:
            (folder / "target").write_text(target_config(device), encoding="utf-8")
            _write_toolchain(folder / "cuda")
            flags += [*_DEVICELESS_FLAGS, f"--xla_gpu_cuda_data_dir={folder / 'cuda'}"]
            if _version(jax.__version__) < _WITH_ANALYSIS:
                flags += [f"--xla_dump_to={folder / 'dump'}"]
            environ |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "CUDA_VISIBLE_DEVICES": ""}
        environ["XLA_FLAGS"] = " ".join(flags)
        return _run_child(folder, environ, timeout_s)


def _run_child(folder: Path, environ: dict[str, str], timeout_s: float) -> StepMemory:
    child = Path(__file__).with_name("compile_child.py")
    try:
        done = subprocess.run(
            # -P: nothing that lies beside the script or in the working directory is imported by mistake.
            [sys.executable, "-P", str(child), str(folder)],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CompilerError(f"XLA did not finish within {timeout_s:.0f} s") from None
    try:
        answer = json.loads((folder / "answer").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise CompilerError(f"XLA's compile ended with {how}: {last.strip()[:300]}") from None
    if "missing" in answer:
        raise CompilerError(answer["missing"], f"pip install 'robot-preflight[{answer['extra']}]'")
    if "unknown" in answer:
        raise CompilerError(answer["unknown"])
    if "error" in answer:
        raise CompilerError(f"XLA could not compile the step: {answer['error']}")
    return StepMemory(**answer)


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _write_toolchain(folder: Path) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "ptxas").write_text(_ASSEMBLER)
    (folder / "bin" / "ptxas").chmod(0o755)
    (folder / "nvvm" / "libdevice").mkdir(parents=True)
    (folder / "nvvm" / "libdevice" / "libdevice.10.bc").write_text(_LIBDEVICE)


def summarize(memory: StepMemory) -> dict[str, Any]:
    """Its figures in GiB, for a report."""
    parts = ("arguments", "outputs", "aliases", "temporaries", "peak")
    return {f"{part}_gib": round(getattr(memory, part) / 2**30, 3) for part in parts}
