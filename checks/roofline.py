"""`step.roofline`: the least time that the step can take on the GPU, and what sets it."""

from __future__ import annotations

import math

from checks.context import CheckContext, with_settings
from checks.device import demand_text, judged_device, step_roofline
from preflight.checklist import Check, Hint, Outcome, passed, skipped, warned


def _roofline(context: CheckContext) -> Outcome:
    device, facts = judged_device(context), context.run.facts
    bounds = step_roofline(context)
    if bounds is None:
        return skipped(
            f"the speed of {device.name} is not known"
            if device.total_bytes
            else "no GPU is here and --target names none"
        )
    if not bounds.tells:
        return skipped(
            f"the step's work is {bounds.floor_s * 1e3:.2g} ms on {device.name}: launching its kernels takes longer"
        )
    low, high = bounds.demand_samples_per_s
    hours = facts.num_train_steps * facts.batch_size / 3600
    measured = {
        "step_tflop": round(bounds.flops / 1e12, 2),
        "step_gb_moved": round(bounds.bytes_moved / 1e9, 2),
        "step_floor_s": float(f"{bounds.floor_s:.4g}"),
        "bound": bounds.bound,
        "demand_samples_per_s": [float(f"{rate:.4g}") for rate in (low, high)],
        "run_hours": [float(f"{hours / rate:.3g}") for rate in (high, low)],
    }
    summary = (
        f"the loader must deliver {demand_text(bounds, device)}; {facts.num_train_steps:,} steps take "
        f"{hours / high:.3g} to {hours / low:.3g} h"
    )
    if bounds.bound == "compute":
        return passed(summary, measured=measured)
    # Where the bytes of state and gradients set the floor, samples are free until their operations take as long.
    balanced = math.ceil(facts.batch_size * bounds.memory_s / bounds.compute_s)
    return warned(
        f"a step of {facts.batch_size} waits for the device memory: its state and gradients take "
        f"{bounds.memory_s * 1e3:.3g} ms to pass, its operations {bounds.compute_s * 1e3:.3g} ms at the peak; "
        f"{summary}",
        measured=measured,
        expected={"bound": "compute"},
        hint=Hint(
            text=f"up to about {balanced} samples a step cost hardly more time than {facts.batch_size}",
            commands=with_settings(context, f"batch_size={balanced}"),
        ),
    )


CHECK = Check(
    id="step.roofline",
    title="The GPU computes rather than waits for its memory",
    level="standard",
    severity="warn",
    requires=("grad.has-aux",),
    timeout_s=180,
    run=_roofline,
    doc="Counts the step's floating-point operations in its trace, loops multiplied out, and the bytes that it must "
    "move (state, gradients, batch), and holds both against the peak and the bandwidth of the GPU (of --target, or the "
    "one that is here): the roofline. From it follow the least time of a step, the samples/s that the loader must "
    "deliver at 35 and at 100 % of the peak, and the run's hours. Warns when memory sets the floor: then a larger "
    "batch is nearly free.",
)
