"""`memory.*`: what the run holds, against what the machine has."""

from __future__ import annotations

import dataclasses

from checks import units
from checks.context import CheckContext, visible_gpus, with_settings
from checks.sweep import configured_point, loader_sweep
from checks.trace import StateBytes, state_bytes
from preflight.checklist import Check, Hint, Outcome, errored, failed, passed, skipped, warned
from preflight.errors import UsageError
from preflight.runs import command_line
from preflight.telemetry.devices import GPUS, gpu

_GIB = 2**30
# jax takes this share of a GPU's memory unless it is told otherwise (jax documentation, "GPU memory allocation").
_DEFAULT_MEM_FRACTION = 0.75
_ADVISED_MEM_FRACTION = 0.95


@dataclasses.dataclass(frozen=True)
class _Device:
    name: str
    limit: int  # bytes that the run may take
    why: str  # how the limit came about
    gpu_bytes: int = 0  # all of a GPU's memory


def _device(context: CheckContext) -> Outcome:
    device = _judged_device(context)
    size = state_bytes(context)
    measured = {
        "state_gib": round(size.total / _GIB, 2),
        **{f"{part}_gib": round(n / _GIB, 2) for part, n in dataclasses.asdict(size).items()},
        "limit_gib": round(device.limit / _GIB, 2),
        "activations": "not counted",
    }
    need = f"parameters, optimizer, EMA, gradients and batch take {_parts(size)}"
    evidence = (f"limit: {device.why}", "activations come on top and are not counted here")
    if size.total > device.limit:
        fitting = [spec.name for spec in GPUS.values() if spec.memory_bytes * _ADVISED_MEM_FRACTION > size.total]
        fitting.sort(key=lambda name: GPUS[name].memory_bytes)
        text = (
            f"their state alone would fit on: {', '.join(fitting)} (at {_ADVISED_MEM_FRACTION:.0%} of the memory)"
            if fitting
            else "no single GPU that preflight knows holds it"
        )
        if size.ema:
            text += f"; without the moving average it takes {units.size(size.total - size.ema)}"
        return failed(
            f"{device.name}: {need}, of {units.size(device.limit)}",
            measured=measured,
            expected={"state_gib": f"less than {device.limit / _GIB:.1f}"},
            evidence=evidence,
            hint=Hint(text=text, commands=_commands(context, device, size, fitting)),
        )
    if size.total > 0.85 * device.limit:
        return warned(
            f"{device.name}: {need}, which leaves {units.size(device.limit - size.total)} for activations",
            measured=measured,
            evidence=evidence,
            hint=Hint(text="a smaller batch makes the activations smaller, not the state"),
        )
    return passed(f"{device.name}: {need}, of {units.size(device.limit)}; activations come on top", measured=measured)


def _judged_device(context: CheckContext) -> _Device:
    environ = context.probes.environ
    text = environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    try:
        fraction = _DEFAULT_MEM_FRACTION if text is None else float(text)
        if not 0 < fraction <= 1:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"XLA_PYTHON_CLIENT_MEM_FRACTION={text!r} is not a share between 0 and 1", "for example 0.95"
        ) from None
    said = f"XLA_PYTHON_CLIENT_MEM_FRACTION={text}" if text else f"jax's default share of {_DEFAULT_MEM_FRACTION:.0%}"
    if context.target is not None:
        spec = gpu(context.target)
        return _Device(
            spec.title, int(spec.memory_bytes * fraction), f"{units.size(spec.memory_bytes)}, {said}", spec.memory_bytes
        )
    present = visible_gpus(context)
    if present:
        least = min(present, key=lambda g: g.total_bytes)
        total = least.total_bytes
        return _Device(least.name, int(total * fraction), f"{units.size(total)}, {said}", total)
    memory = context.probes.memory()
    return _Device(
        "no accelerator, so host RAM", memory.available_bytes, f"{memory.source}: {units.size(memory.available_bytes)}"
    )


def _parts(size: StateBytes) -> str:
    parts = {"parameters": size.parameters, "optimizer": size.optimizer, "EMA": size.ema, "gradients": size.gradients}
    listed = ", ".join(f"{name} {units.size(n)}" for name, n in parts.items() if n)
    return f"{units.size(size.total)} ({listed})"


def _commands(context: CheckContext, device: _Device, size: StateBytes, fitting: list[str]) -> tuple[str, ...]:
    advised = f"XLA_PYTHON_CLIENT_MEM_FRACTION={_ADVISED_MEM_FRACTION}"
    if device.gpu_bytes * _ADVISED_MEM_FRACTION > size.total:
        return (f"export {advised}",)
    if not fitting:
        return ()
    return (f"{advised} {command_line(context.run.facts, 'check', '--target', fitting[0])}",)


def _workers(context: CheckContext) -> Outcome:
    facts = context.run.facts
    if facts.num_workers == 0:
        return skipped("num_workers is 0: there is no worker to measure")
    result, own = loader_sweep(context), configured_point(context)
    if own is None:
        why = result.not_measured.get(facts.num_workers, "no reason is known")
        return failed(
            f"{facts.num_workers} workers were not even started: {why}",
            hint=Hint(
                text="fewer workers", commands=with_settings(context, f"num_workers={result.recommended_num_workers}")
            ),
        )
    if own.workers_mib is None or own.pss_mib is None:
        return errored("the memory of the workers could not be measured: the system does not tell it")
    budget = result.memory
    total = budget.baseline_mib + own.workers_mib
    measured = {
        "pss_per_worker_mib": round(own.pss_mib, 1),
        "workers_mib": round(own.workers_mib, 1),
        "baseline_mib": round(budget.baseline_mib, 1),
        "limit_mib": round(budget.limit_mib, 1),
        "growth_per_min_mib": own.growth_per_min_mib,
    }
    summary = (
        f"{facts.num_workers} workers hold {own.workers_mib / 1024:.2f} GiB ({own.pss_mib:,.0f} MiB PSS each and their "
        f"waiting batches), with the parent {total / 1024:.2f} of {budget.limit_mib / 1024:.1f} GiB "
        f"({budget.limit_source})"
    )
    if total > budget.limit_mib:
        return failed(
            summary,
            measured=measured,
            hint=Hint(
                text="fewer workers",
                commands=with_settings(context, f"num_workers={min(budget.max_workers or 0, facts.num_workers)}"),
            ),
        )
    if total > 0.8 * budget.limit_mib:
        return warned(
            f"{summary}: little is left for checkpoints, which pass through host RAM",
            measured=measured,
            hint=Hint(
                text="fewer workers", commands=with_settings(context, f"num_workers={max(1, facts.num_workers // 2)}")
            ),
        )
    return passed(summary, measured=measured)


CHECKS = (
    Check(
        id="memory.device",
        title="The train state fits in device memory",
        level="standard",
        severity="fail",
        failures=("F08", "F09"),
        timeout_s=180,
        run=_device,
        doc="Adds up the exact bytes of parameters, optimizer state, moving average, gradients and one batch, "
        "from the traced shapes, and compares them with the GPU named by --target, else the smallest GPU here, "
        "times the share that jax may take (XLA_PYTHON_CLIENT_MEM_FRACTION, 0.75 by default); without an "
        "accelerator with the host's RAM. Activations are not counted: a pass means that the state fits, not "
        "that the step does.",
    ),
    Check(
        id="memory.workers",
        title="The loader's workers fit in RAM",
        level="standard",
        severity="fail",
        requires=("data.sample",),
        exclusive=True,
        failures=("F27", "F28"),
        timeout_s=240,
        run=_workers,
        doc="Starts the configured number of workers, lets them load, and measures the memory of each (PSS: "
        "shared pages divided among those who map them) and of the batches that wait in shared memory. Their "
        "sum and the parent's are compared with MemAvailable and the cgroup's limit, whichever is tighter.",
    ),
)
