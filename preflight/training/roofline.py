"""The least time that a step can take on a GPU, and the samples/s that the loader must deliver to it.

Williams, Waterman and Patterson, Roofline: An Insightful Visual Performance Model, Communications of the ACM 52(4).
"""

from __future__ import annotations

import dataclasses

from preflight.telemetry.targets import GpuSpec

# The share of the peak that a step attains lies between these. Well-tuned training of large transformers reaches 35 to
# 55 % of the dense peak (Chowdhery et al., PaLM, arXiv:2204.02311, table 3: 46 %; Grattafiori et al., Llama 3,
# arXiv:2407.21783, table 4: 38 to 43 %); more than all of it is not to be had.
LOW_UTILISATION, HIGH_UTILISATION = 0.35, 1.0
# A launch takes some microseconds of the host, and a step of pi0 launches about a thousand kernels.
_LAUNCHES_S = 5e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Bounds of a step's time on a GPU."""

    flops: float  # of one step on one device
    bytes_moved: float  # to and from the device memory, at the least
    compute_s: float  # the operations at the peak
    memory_s: float  # the bytes at the full bandwidth
    demand_samples_per_s: tuple[float, float]  # at LOW_UTILISATION and at HIGH_UTILISATION, over all devices

    @property
    def floor_s(self) -> float:
        """No step is faster."""
        return max(self.compute_s, self.memory_s)

    @property
    def tells(self) -> bool:
        """Whether the floor is near what a step takes: a toy's step is all kernel launches, which are not in it."""
        return self.floor_s >= _LAUNCHES_S

    @property
    def bound(self) -> str:
        """What sets the floor: "compute" or "memory bandwidth"."""
        return "compute" if self.compute_s >= self.memory_s else "memory bandwidth"


def roofline(*, flops: float, bytes_moved: float, spec: GpuSpec, batch_size: int) -> Roofline:
    """Bounds the time of a step.

    Args:
        flops: Of matrix products, for one device's share of the batch.
        bytes_moved: What the step must read and write once: state, gradients, batch.
        spec: The device.
        batch_size: Samples of a step over all devices.
    """
    compute_s, memory_s = flops / spec.bf16_flops_per_s, bytes_moved / spec.bandwidth_bytes_per_s
    floor_s = max(compute_s, memory_s)
    return Roofline(
        flops=flops,
        bytes_moved=bytes_moved,
        compute_s=compute_s,
        memory_s=memory_s,
        demand_samples_per_s=(batch_size / floor_s * LOW_UTILISATION, batch_size / floor_s * HIGH_UTILISATION),
    )
