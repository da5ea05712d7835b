"""`memory.device`: the whole train step on a GPU, from XLA's own compiler, whether or not the GPU is here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from checks import units
from checks.context import CheckContext
from checks.device import Device, compile_for, device_bytes, judged_device, lowered_step, shards_of
from checks.remedies import remedies
from checks.trace import StateBytes, state_bytes
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped, warned
from preflight.runs import command_line

if TYPE_CHECKING:
    from preflight.training.device_compile import CompilerError, StepMemory

_GIB = 2**30
# A pool that is fuller than this fails on fragmentation: JAX's allocator hands out contiguous pieces.
_TIGHT = 0.95


def _device(context: CheckContext) -> Outcome:
    device = judged_device(context)
    shards = context.run.facts.fsdp_devices
    if device.count % shards:
        return _not_divided(context, device, shards)
    size = device_bytes(context, device, shards)
    if not device.total_bytes:
        return _on_host(context, device, size)
    if size.total > device.advised_limit:
        return _too_large(context, device, size)
    from preflight.training.device_compile import CompilerError

    step = lowered_step(context, device, shards)
    try:
        memory = context.probes.compile(step, compile_for(device))
    except CompilerError as error:
        return _from_cpu(context, device, size, error)
    need = needed(memory, size)
    measured = _measured(context, device, size, memory)
    evidence = (*_table(size, memory), f"limit: {device.why}")
    state = "its share of the state" if shards > 1 else "state"
    summary = (
        f"{device.name}: the step takes {units.size(need)} of {units.size(device.limit)} "
        f"({state} {units.size(size.checkpoint)}, temporaries {units.size(memory.temporaries)}), says {memory.compiler}"
    )
    if need > device.limit:
        return failed(
            summary,
            measured=measured,
            expected={"step_gib": f"at most {device.limit / _GIB:.1f}"},
            evidence=evidence,
            hint=remedies(context, device, size, need),
        )
    if need > _TIGHT * device.limit:
        return warned(
            f"{summary}: so full a pool can fail on fragmentation",
            measured=measured,
            evidence=evidence,
            hint=remedies(context, device, size, need, limit=int(_TIGHT * device.limit)),
        )
    return passed(summary, measured=measured, evidence=evidence)


def _not_divided(context: CheckContext, device: Device, shards: int) -> Outcome:
    """Which devices the state would be divided over is not known: they are not here, or cannot be."""
    state = state_bytes(context)
    why = (
        f"which do not divide {device.name}"
        if device.total_bytes
        else "none of which is here, and --target does not name as many"
    )
    return skipped(
        f"not judged: the state is shared by {shards} GPUs (fsdp_devices), {why}; undivided it takes "
        f"{units.size(state.checkpoint)}, and gradients {units.size(state.gradients)}",
        measured={"fsdp_devices": shards, "state_gib": round(state.checkpoint / _GIB, 2)},
        hint=None
        if device.total_bytes
        else Hint(
            text="say which GPUs it is to fly on",
            commands=(command_line(context.run.facts, "check", "--target", f"{shards}xh100-80gb"),),
        ),
    )


def needed(memory: StepMemory, size: StateBytes) -> int:
    """The step's peak, and the next batch, which is on its way while the step runs."""
    return memory.peak + size.batch


def _too_large(context: CheckContext, device: Device, size: StateBytes) -> Outcome:
    """State, gradients and batch alone do not fit: a verdict that needs no compiler."""
    return failed(
        f"{device.name}: parameters, optimizer, EMA, gradients and batch alone take {units.size(size.total)}, of "
        f"{units.size(device.limit)}",
        measured=_measured(context, device, size),
        expected={"state_gib": f"less than {device.limit / _GIB:.1f}"},
        evidence=(*_table(size), f"limit: {device.why}", "activations come on top"),
        hint=remedies(context, device, size, None),
    )


def _from_cpu(context: CheckContext, device: Device, size: StateBytes, error: CompilerError) -> Outcome:
    """An upper bound where the GPU's compiler is not to be had."""
    from preflight.training.device_compile import CompilerError

    why = f"the GPU's compiler was not used: {error.message}"
    hint = Hint(
        text="XLA's own compile for the GPU says it exactly; the GPU need not be here",
        commands=(error.hint,) if error.hint else (),
    )
    try:
        step = lowered_step(context, device, shards_of(context, device))
        memory = context.probes.compile(step, "cpu")
    except CompilerError as second:
        return skipped(
            f"not judged: the state takes {units.size(size.total)} of {units.size(device.limit)}, what comes on top is "
            f"not known; {error.message}",
            measured=_measured(context, device, size),
            evidence=(*_table(size), why, f"nor does the CPU's tell: {second.message}"),
            hint=hint,
        )
    need = needed(memory, size)
    measured = _measured(context, device, size, memory)
    # Measured for pi0 at batch 32: the CPU's compiler, which computes bfloat16 in float32, keeps 33.6 GiB of
    # temporaries where the H100's keeps 18.8.
    evidence = (*_table(size, memory), f"limit: {device.why}", why, "the CPU's compile keeps more than a GPU's")
    if need > device.limit:
        return skipped(
            f"not judged: {error.message}; the state takes {units.size(size.total)} of {units.size(device.limit)}, the "
            f"whole step at most {units.size(need)} (upper bound from the CPU's compile)",
            measured=measured,
            evidence=evidence,
            hint=hint,
        )
    return passed(
        f"{device.name}: the step takes at most {units.size(need)} of {units.size(device.limit)} (upper bound from the "
        f"CPU's compile: {error.message})",
        measured=measured,
        evidence=evidence,
        hint=hint,
    )


def _on_host(context: CheckContext, device: Device, size: StateBytes) -> Outcome:
    measured = _measured(context, device, size)
    evidence = (*_table(size), f"limit: {device.why}", "activations come on top and are not counted here")
    parts = {"parameters": size.parameters, "optimizer": size.optimizer, "EMA": size.ema, "gradients": size.gradients}
    listed = ", ".join(f"{name} {units.size(n)}" for name, n in parts.items() if n)
    need = f"parameters, optimizer, EMA, gradients and batch take {units.size(size.total)} ({listed})"
    summary = f"{device.name}: {need}, of {units.size(device.limit)}"
    if size.total > device.limit:
        return failed(
            summary,
            measured=measured,
            expected={"state_gib": f"less than {device.limit / _GIB:.1f}"},
            evidence=evidence,
            hint=remedies(context, device, size, None),
        )
    if size.total > 0.85 * device.limit:
        left = units.size(device.limit - size.total)
        return warned(
            f"{device.name}: {need}, which leaves {left} for activations",
            measured=measured,
            evidence=evidence,
            hint=Hint(text="a smaller batch makes the activations smaller, not the state"),
        )
    return passed(f"{summary}; activations come on top", measured=measured, evidence=evidence)


def _measured(
    context: CheckContext, device: Device, size: StateBytes, memory: StepMemory | None = None
) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "state_gib": round(size.total / _GIB, 2),
        **{f"{part}_gib": round(n / _GIB, 2) for part, n in dataclasses.asdict(size).items()},
        "limit_gib": round(device.limit / _GIB, 2),
    }
    if memory is not None:
        from preflight.training.device_compile import summarize

        figures |= {
            "step_gib": round(needed(memory, size) / _GIB, 2),
            "xla": summarize(memory),
            "compiler": memory.compiler,
            "compile_s": memory.seconds,
        }
    return figures


def _table(size: StateBytes, memory: StepMemory | None = None) -> tuple[str, ...]:
    rows = [f"{part:<12} {units.size(n):>10}" for part, n in dataclasses.asdict(size).items()]
    if memory is not None:
        rows += [
            f"{part:<12} {units.size(getattr(memory, part)):>10}  compiled"
            for part in ("arguments", "outputs", "aliases", "temporaries", "peak")
        ]
    return tuple(rows)


CHECK = Check(
    id="memory.device",
    title="The train step fits in device memory",
    level="standard",
    severity="fail",
    requires=("config.model",),
    failures=("F08", "F09"),
    timeout_s=400,
    run=_device,
    doc="Judges the GPU named by --target (`h100-80gb`, `8xh100-80gb`, or a TOML file with the keys of "
    "preflight/telemetry/gpus.toml), else the smallest GPU here. The exact bytes of parameters, optimizer, moving "
    "average, gradients and one batch come from the traced shapes. The whole step is then compiled for that GPU by XLA "
    "itself, in a process of its own and with no GPU needed (extra `aot`), and XLA says where arguments, outputs and "
    "temporaries lie; the next batch, which arrives meanwhile, is added. The limit is the GPU's memory times the share "
    "that jax may take (XLA_PYTHON_CLIENT_MEM_FRACTION, 0.75 by default). Without the compiler, the CPU's compile "
    "serves as an upper bound; where that does not fit, nothing is judged. A failure names what would make it fit: a "
    "larger share, no moving average, a state that several GPUs share (fsdp_devices), a smaller batch, LoRA, another "
    "GPU, each computed. Without an accelerator, state, gradients and batch are held against the host's RAM, and "
    "activations are not counted. Of several GPUs, each has its share of the batch; it holds the whole state, or with "
    "fsdp_devices its share of that too, and the step is then compiled for all of them at once. The buffers of their "
    "communication (NCCL's) are not counted.",
)
