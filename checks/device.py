"""The device that a run is judged for, and what its step asks of it and of the loader."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from checks import units
from checks.context import CheckContext, visible_gpus
from checks.trace import StateBytes, state_bytes
from preflight.errors import UsageError
from preflight.telemetry.targets import GpuSpec, known_as

if TYPE_CHECKING:
    from preflight.training.lowered import LoweredStep
    from preflight.training.roofline import Roofline

# jax takes this share of a GPU's memory unless it is told otherwise (jax documentation, "GPU memory allocation").
_DEFAULT_MEM_FRACTION = 0.75
ADVISED_MEM_FRACTION = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """Where a run's step would run."""

    name: str
    limit: int  # bytes that the run may take on each device
    why: str  # how the limit came about
    count: int = 1  # devices that share each batch
    total_bytes: int = 0  # all of a GPU's memory; 0 where there is none
    spec: GpuSpec | None = None  # None: no GPU, or one that is not known
    present: bool = False  # whether XLA can compile for it because it is here

    @property
    def advised_limit(self) -> int:
        """The limit at ADVISED_MEM_FRACTION; the host's stays what it is."""
        return max(self.limit, int(self.total_bytes * ADVISED_MEM_FRACTION))


def judged_device(context: CheckContext) -> Device:
    """The GPU named by --target, else the smallest that is here, else the host.

    Raises:
        UsageError: XLA_PYTHON_CLIENT_MEM_FRACTION is no share.
    """
    fraction, said = _fraction(context)
    if context.target is not None:
        spec = context.target.spec
        return Device(
            name=str(context.target),
            limit=int(spec.memory_bytes * fraction),
            why=f"{units.size(spec.memory_bytes)}, {said}",
            count=context.target.count,
            total_bytes=spec.memory_bytes,
            spec=spec,
        )
    present = visible_gpus(context)
    if present:
        least = min(present, key=lambda g: g.total_bytes)
        return Device(
            name=f"{len(present)} x {least.name}" if len(present) > 1 else least.name,
            limit=int(least.total_bytes * fraction),
            why=f"{units.size(least.total_bytes)}, {said}",
            count=len(present),
            total_bytes=least.total_bytes,
            spec=known_as(least.name),
            present=True,
        )
    memory = context.probes.memory()
    why = f"{memory.source}: {units.size(memory.available_bytes)}"
    return Device(name="no accelerator, so host RAM", limit=memory.available_bytes, why=why)


def compile_for(device: Device) -> GpuSpec | str:
    """What to ask XLA for: the GPU that is here itself, else the description of one that is not."""
    return "cuda" if device.present or device.spec is None else device.spec


def per_device_batch(context: CheckContext, device: Device) -> int:
    """Samples of a batch that one device gets."""
    return -(-context.run.facts.batch_size // device.count)


def shards_of(context: CheckContext, device: Device) -> int:
    """Devices that share one copy of the state; 1 where the run's number does not divide the devices."""
    shards = context.run.facts.fsdp_devices
    return 1 if device.count % shards else shards


def device_bytes(context: CheckContext, device: Device, shards: int) -> StateBytes:
    """What one device holds of the state and of each batch."""
    return state_bytes(context, per_device_batch(context, device), shards=shards)


def lowered_step(context: CheckContext, device: Device, shards: int) -> LoweredStep:
    """The run's step, traced once for all checks.

    On one device where each holds the whole state, since then all of them do the same; else on all of them.

    Args:
        context: The run's.
        device: Where the step would run.
        shards: Devices that share one copy of the state.
    """
    batch = per_device_batch(context, device)

    def lower() -> LoweredStep:
        from preflight.training.lowered import lower_step

        if shards == 1:
            return lower_step(context.run, batch)
        return lower_step(context.run, batch * device.count, fsdp_devices=shards, num_devices=device.count)

    return context.once(f"lowered-step-{batch}-{device.count if shards > 1 else 1}-{shards}", lower)


def step_roofline(context: CheckContext) -> Roofline | None:
    """The bounds of the run's step on the judged device; None where its speed is not known."""
    device = judged_device(context)
    if device.spec is None:
        return None
    spec = device.spec

    def bound() -> Roofline:
        from preflight.training.flops import count_flops
        from preflight.training.roofline import roofline

        shards = shards_of(context, device)
        size, step = device_bytes(context, device, shards), lowered_step(context, device, shards)
        return roofline(
            flops=count_flops(step.jaxpr).matmul / step.num_devices,
            # Everything is read once, and what is trained is written once.
            bytes_moved=float(size.checkpoint + size.batch + size.gradients + size.optimizer + size.ema),
            spec=spec,
            batch_size=context.run.facts.batch_size,
        )

    return context.once("roofline", bound)


def demand_text(bounds: Roofline, device: Device) -> str:
    """What the loader must deliver, and why."""
    from preflight.training.roofline import HIGH_UTILISATION, LOW_UTILISATION

    low, high = bounds.demand_samples_per_s
    return (
        f"{low:,.0f} samples/s for a step at {LOW_UTILISATION:.0%} of the peak of {device.name}, {high:,.0f} at "
        f"{HIGH_UTILISATION:.0%} ({bounds.flops / 1e12:,.3g} TFLOP a step, no less than {bounds.floor_s:.3g} s)"
    )


def roofline_source(device: Device) -> str:
    """Where the lower demand of a roofline is from."""
    from preflight.training.roofline import LOW_UTILISATION

    return f"a step at {LOW_UTILISATION:.0%} of the peak of {device.name}"


def _fraction(context: CheckContext) -> tuple[float, str]:
    text = context.probes.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    try:
        fraction = _DEFAULT_MEM_FRACTION if text is None else float(text)
        if not 0 < fraction <= 1:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"XLA_PYTHON_CLIENT_MEM_FRACTION={text!r} is not a share between 0 and 1", "for example 0.95"
        ) from None
    said = f"XLA_PYTHON_CLIENT_MEM_FRACTION={text}" if text else f"jax's default share of {_DEFAULT_MEM_FRACTION:.0%}"
    return fraction, said
