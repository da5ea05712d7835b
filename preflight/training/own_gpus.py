"""Which of the machine's GPUs a run computes on, by NVML's count."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax


def own_gpus(environ: Mapping[str, str] = os.environ) -> tuple[int, ...]:
    """NVML's indices of the GPUs that JAX computes on; none where it computes on something else.

    CUDA counts those of CUDA_VISIBLE_DEVICES alone, and by speed; NVML counts all, by where they are plugged in: the
    same order among equal GPUs. Where the variable names GPUs by their UUIDs, which is which is not known, and none are
    given: another one's idleness is not this run's.
    """
    if jax.default_backend() not in ("gpu", "cuda"):
        return ()
    numbers = [device.local_hardware_id for device in jax.local_devices()]
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    if not visible:
        return tuple(numbers)
    names = [name.strip() for name in visible.split(",")]
    known = [int(names[number]) for number in numbers if number < len(names) and names[number].isdecimal()]
    return tuple(known) if len(known) == len(numbers) else ()
