"""What would make a train step fit on its GPU: each computed, none guessed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from checks import units
from checks.context import CheckContext
from checks.device import (
    ADVISED_MEM_FRACTION,
    Device,
    compile_for,
    device_bytes,
    lowered_step,
    per_device_batch,
    shards_of,
)
from checks.trace import StateBytes
from preflight.checklist import Hint
from preflight.runs import command_line
from preflight.telemetry.targets import GPUS

if TYPE_CHECKING:
    from preflight.runs import Run


# How many a machine of datasheet GPUs holds, as a rule.
_GPUS_OF_A_MACHINE = (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class _Remedy:
    text: str
    need: int  # bytes of the step, or of its state alone where no more is known
    assignments: tuple[str, ...] = ()
    target: str | None = None  # another GPU
    by_command: bool = True  # whether a command can make it so
    compiled: bool = True  # whether `need` is of the whole step


def remedies(
    context: CheckContext, device: Device, size: StateBytes, need: int | None, *, limit: int | None = None
) -> Hint:
    """What makes the run fit, the least change first.

    Args:
        context: The run's.
        device: Where it does not fit.
        size: Its exact bytes.
        need: What the compiled step takes; None where the state alone is too much, or nothing was compiled.
        limit: Bytes to stay below, the device's without it.
    """
    limit = device.limit if limit is None else limit
    # A larger share helps only whoever has a smaller one.
    ceiling = device.advised_limit if device.advised_limit > device.limit else limit
    found = [
        remedy
        for remedy in (
            _larger_share(need, limit, ceiling),
            _shared_state(context, device, ceiling) if device.count > 1 else None,
            _without_ema(context, device, size, need, ceiling),
            _smaller_batch(context, device, size, need, ceiling),
        )
        if remedy is not None
    ]
    if not found:
        more = _shared_state(context, device, ceiling) if device.count == 1 and context.target is not None else None
        other = _other_gpu(context, device, size, need, limit / device.limit)
        found = [remedy for remedy in (_lora(context, device, ceiling), more, other) if remedy is not None]
    if not found:
        return Hint(text="no GPU that preflight knows holds it, nor do LoRA or fsdp_devices bring it down to this one")
    # Where nothing was compiled, no more is promised than what was looked at.
    what = "it fits" if any(remedy.compiled for remedy in found) else "its state and gradients fit"
    return Hint(
        text=f"{what} with " + "; or with ".join(remedy.text for remedy in found),
        commands=tuple(_command(context, remedy, limit) for remedy in found if remedy.by_command),
    )


def _larger_share(need: int | None, limit: int, ceiling: int) -> _Remedy | None:
    if need is None or not limit < need <= ceiling:
        return None
    return _Remedy(f"{ADVISED_MEM_FRACTION:.0%} of the GPU's memory for jax", need)


def _shared_state(context: CheckContext, device: Device, ceiling: int) -> _Remedy | None:
    """One copy of the state over more of the GPUs, or of one GPU over several: the losses stay the same."""
    from preflight.training.device_compile import CompilerError

    facts = context.run.facts
    if device.count > 1:
        counts = [n for n in range(facts.fsdp_devices + 1, device.count + 1) if device.count % n == 0]
    else:
        counts = [n for n in _GPUS_OF_A_MACHINE if facts.batch_size % n == 0]
    judged = [(n, device if device.count > 1 else dataclasses.replace(device, count=n)) for n in counts]
    sized = [(n, on, device_bytes(context, on, n)) for n, on in judged]
    fitting = [one for one in sized if one[2].total <= ceiling]
    # The fewest, or else all: each is a compile.
    for n, on, size in dict.fromkeys([*fitting[:1], *fitting[-1:]]):
        whose = f"the state shared by {n} GPUs" if device.count > 1 else f"{n} of them that share the state"
        several = f"{n}x{context.target.text}" if device.count == 1 and context.target is not None else None
        try:
            memory = context.probes.compile(lowered_step(context, on, n), compile_for(on))
        except CompilerError:
            text = f"{whose} (fsdp_devices={n}: {units.size(size.total)} each, and activations)"
            return _Remedy(text, size.total, (f"fsdp_devices={n}",), several, compiled=False)
        need = memory.peak + size.batch
        if need <= ceiling:
            text = f"{whose} (fsdp_devices={n}: {units.size(need)} each)"
            return _Remedy(text, need, (f"fsdp_devices={n}",), several)
    return None


def _without_ema(
    context: CheckContext, device: Device, size: StateBytes, need: int | None, ceiling: int
) -> _Remedy | None:
    # Compiled, not subtracted: XLA orders a step without the average otherwise, and pi0's temporaries grow by 1.2 GiB.
    taken = size.total if need is None else need
    if not size.ema or taken - size.ema > ceiling:
        return None
    other = next(run for run in context.run.branches().values() if run.facts.ema_decay is None)
    return _of_branch(context, device, other, "no moving average", ceiling)


def _smaller_batch(
    context: CheckContext, device: Device, size: StateBytes, need: int | None, ceiling: int
) -> _Remedy | None:
    if need is None:
        return None
    batch = per_device_batch(context, device)
    # XLA's peak is the largest of several moments, each of which grows evenly with the batch: the peak is convex in it,
    # and lies below the line from the state and the gradients (no batch) to what this batch takes.
    state = size.checkpoint + size.gradients
    fitting = int(batch * (ceiling - state) / (need - state)) if need > state else 0
    if not 1 <= fitting < batch:
        return None
    most = state + (need - state) * fitting // batch
    total = fitting * device.count
    return _Remedy(f"a batch of {total} (at most {units.size(most)})", most, (f"batch_size={total}",))


def _lora(context: CheckContext, device: Device, ceiling: int) -> _Remedy | None:
    if context.run.facts.lora:
        return None
    other = next((run for run in context.run.branches().values() if run.facts.lora), None)
    return None if other is None else _of_branch(context, device, other, "LoRA", ceiling)


def _of_branch(context: CheckContext, device: Device, run: Run, name: str, ceiling: int) -> _Remedy | None:
    """Another branch of the run, compiled where there is a GPU to compile for; with a smaller batch if need be."""
    from preflight.training.device_compile import CompilerError

    other = dataclasses.replace(context, run=run, _made={}, _locks={})
    shards = shards_of(other, device)
    size = device_bytes(other, device, shards)
    if size.total > ceiling:
        return None
    assignments = _difference(context.run, run)
    if by_hand := [key for key in run.facts.in_file_only if run.facts.settings[key] != context.run.facts.settings[key]]:
        name = f"{name} (in the config's file: {', '.join([*assignments, *by_hand])})"
    uncompiled = _Remedy(
        f"{name} ({units.size(size.total)}, and activations)",
        size.total,
        assignments,
        compiled=False,
        by_command=not by_hand,
    )
    if not device.total_bytes:
        return uncompiled
    try:
        memory = context.probes.compile(lowered_step(other, device, shards), compile_for(device))
    except CompilerError:
        return uncompiled
    need = memory.peak + size.batch
    if need <= ceiling:
        return _Remedy(f"{name} ({units.size(need)})", need, assignments, by_command=not by_hand)
    smaller = _smaller_batch(other, device, size, need, ceiling)
    if smaller is None:
        return None
    both = (*assignments, *smaller.assignments)
    return _Remedy(f"{name} and {smaller.text}", smaller.need, both, by_command=not by_hand)


def _other_gpu(
    context: CheckContext, device: Device, size: StateBytes, need: int | None, usable: float
) -> _Remedy | None:
    taken = size.total if need is None else need
    held = [
        spec
        for spec in GPUS.values()
        if spec.memory_bytes > device.total_bytes and spec.memory_bytes * ADVISED_MEM_FRACTION * usable > taken
    ]
    if not held:
        return None
    held.sort(key=lambda spec: spec.memory_bytes)
    names = ", ".join(spec.name for spec in held)
    what = "whose memory holds it" if need is not None else "whose memory holds the state"
    count = 1 if context.target is None else context.target.count
    least = f"{count}x{held[0].name}" if count > 1 else held[0].name
    return _Remedy(f"a GPU {what} ({names})", taken, target=least, compiled=need is not None)


def _difference(own: Run, other: Run) -> tuple[str, ...]:
    """The settings that turn one run into the other."""
    mine, theirs = own.facts.settings, other.facts.settings
    left = ("freeze", *other.facts.in_file_only)
    changed = [key for key in theirs if key not in left and theirs[key] != mine.get(key)]
    # A `freeze` of the user's own would stay in force; none leaves the filter to the variants.
    freeze = ("freeze=none",) if "freeze" in theirs and theirs["freeze"] != mine.get("freeze") else ()
    return (*(f"{key}={'none' if theirs[key] is None else theirs[key]}" for key in changed), *freeze)


def _command(context: CheckContext, remedy: _Remedy, limit: int) -> str:
    words = [word for assignment in remedy.assignments for word in ("--set", assignment)]
    target = remedy.target or (None if context.target is None else context.target.text)
    if target is not None:
        words += ["--target", target]
    line = command_line(context.run.facts, "check", *words)
    return f"XLA_PYTHON_CLIENT_MEM_FRACTION={ADVISED_MEM_FRACTION} {line}" if remedy.need > limit else line
