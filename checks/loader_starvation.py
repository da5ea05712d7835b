"""`loader.starvation`: what the loader delivers, against what the step asks for."""

from __future__ import annotations

from typing import Any

from checks.context import CheckContext
from checks.device import demand_text, judged_device, step_roofline
from checks.sweep import configured_point, loader_sweep
from preflight.checklist import Check, Hint, Outcome, passed, skipped, warned
from preflight.runs import command_line


def _starvation(context: CheckContext) -> Outcome:
    device, bounds, facts = judged_device(context), step_roofline(context), context.run.facts
    if bounds is None:
        why = f"the speed of {device.name} is not known" if device.total_bytes else "no GPU is here, --target names one"
        return skipped(f"what the step asks for is not known: {why}")
    if not bounds.tells:
        return skipped(f"what the step asks for is not known: on {device.name} it is all launches of kernels")
    result, own = loader_sweep(context), configured_point(context)
    if own is None:
        why = result.not_measured.get(facts.num_workers, "no reason is known")
        return skipped(f"the loader could not be measured with {facts.num_workers} workers: {why}")
    rate, limit, (low, high) = own.samples_per_s, result.bottleneck, bounds.demand_samples_per_s
    measured: dict[str, Any] = {
        "samples_per_s": [round(x, 1) for x in (rate.median, rate.lo, rate.hi)],
        "demand_samples_per_s": [round(low, 1), round(high, 1)],
    }
    summary = f"{rate.median:,.0f} samples/s [{rate.lo:,.0f}, {rate.hi:,.0f}] with {facts.num_workers} workers"
    asked = demand_text(bounds, device)
    if rate.hi >= low:
        return passed(f"{summary}; asked for are {asked}", measured=measured)
    measured["waiting_share"] = round(1 - rate.median / low, 3)
    evidence = () if limit is None else (f"Bottleneck: {limit}", *([limit.cache] if limit.cache is not None else []))
    return warned(
        f"{summary}: the GPU would wait for data {1 - rate.median / low:.0%} of the time; asked for are {asked}",
        measured=measured,
        expected={"samples_per_s": f"at least {low:.1f}"},
        evidence=evidence,
        hint=Hint(
            text="more workers on more cores, fewer or smaller pictures, or data on a local disk; measure them"
            if limit is None
            else "; ".join(limit.advice),
            commands=(*_cache_command(context), command_line(facts, "bench-loader", "--workers", _to_try(context))),
        ),
    )


def _cache_command(context: CheckContext) -> tuple[str, ...]:
    limit, kind = loader_sweep(context).bottleneck, context.run.facts.settings.get("data.cache")
    if limit is None or limit.cache is None or kind not in ("off", "disk"):
        return ()
    return (command_line(context.run.facts, "cache", "--set", "data.cache=disk"),)


def _to_try(context: CheckContext) -> str:
    cores = max(1, int(context.probes.cpus().count))
    return ",".join(str(n) for n in sorted({max(1, cores // 2), cores, context.run.facts.num_workers} - {0}))


CHECK = Check(
    id="loader.starvation",
    title="The GPU does not wait for data",
    level="standard",
    severity="warn",
    requires=("loader.first-batch", "grad.has-aux"),
    exclusive=True,
    failures=("F03", "F23"),
    timeout_s=240,
    run=_starvation,
    doc="Holds the samples/s that `loader.throughput` measures at the configured number of workers against what the "
    "step asks for where the GPU is known (--target, or one is here): its peak and the step's operations, as "
    "`step.roofline` counts them. Warns when a step at 35 % of the peak would already wait, says for how much of its "
    "time, what limits the loader and what helps against that; where decoding does, a frame cache (data.cache), with "
    "its size and what decoding takes of a sample.",
)
