"""`python -m bench.calibrate`: what was said of a step on a GPU, and what it takes there: memory and time.

Predicted is what `memory.device --target` says without the GPU, compiled what XLA says with it, observed the most that
jax held over some real steps, and what NVML saw the process hold. The step's time is held against the roofline: the
share of the GPU's dense bf16 peak that its matrix products attain. Each step runs in a process of its own, on random
batches that lie on the device. Without a GPU only the predictions are made, and the table says so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from preflight.errors import PreflightError
from preflight.telemetry.devices import present_gpus, quiet_idle_plugin
from preflight.telemetry.environment import environment
from preflight.telemetry.targets import GpuSpec, known_as, parse_target

_LORA = ("model.paligemma_variant=gemma_2b_lora", "model.action_expert_variant=gemma_300m_lora")
# What people train: the full model and adapters, small and large batches, with the average and without.
POINTS: dict[str, tuple[str, ...]] = {
    "pi0, batch 8": ("batch_size=8",),
    "pi0, batch 32": ("batch_size=32",),
    "pi0, batch 8, EMA": ("batch_size=8", "ema_decay=0.99"),
    "pi0.5, batch 8": ("batch_size=8", "model.pi05=true"),
    "pi0, LoRA, batch 8": ("batch_size=8", *_LORA),
    "pi0, LoRA, batch 32": ("batch_size=32", *_LORA),
    "pi0.5, LoRA, batch 32": ("batch_size=32", "model.pi05=true", *_LORA),
}
_CONFIG = "pi0_lighter_cup_trossen"
_GIB = 2**30
_STEPS = 12  # of which the first compiles


def predict(spec: GpuSpec, assignments: tuple[str, ...], *, here: bool) -> dict[str, float]:
    """Peaks in GiB that XLA gives for a run's step, without the GPU and, where it is here, with it."""
    from preflight.runs import load_run
    from preflight.training.device_compile import compile_step_for
    from preflight.training.flops import count_flops
    from preflight.training.lowered import lower_step

    run = load_run(_CONFIG, assignments=assignments)
    step = lower_step(run, run.facts.batch_size)
    found = {
        "tflop": count_flops(step.jaxpr).matmul / 1e12,
        "predicted_gib": compile_step_for(step, spec, timeout_s=600.0).peak / _GIB,
    }
    if here:
        found["compiled_gib"] = compile_step_for(step, "cuda", timeout_s=600.0).peak / _GIB
    return found


def observe(assignments: tuple[str, ...], config: str = _CONFIG) -> dict[str, float | None]:
    """Makes some steps of a run on random batches here; reads how much memory they took at the most, and their time.

    To be called in a process of its own: jax's peak is the process's.

    Returns:
        `observed_gib` and `nvml_gib`, None where they are not told; `step_s`, the median of the steps after the first
        two; `first_step_s`, with the compile in it.
    """
    import jax

    from preflight.runs import load_run
    from preflight.training.mesh import make_mesh
    from preflight.training.state import first_state, state_sharding
    from preflight.training.step import compile_step

    run = load_run(config, assignments=assignments)
    device = jax.devices()[0]
    mesh = make_mesh(devices=[device])
    rng = jax.random.key(0)
    state = first_state(run, rng, state_sharding(run, mesh))
    step = compile_step(run, mesh)
    batch = jax.tree.map(lambda x: jax.numpy.ones(x.shape, x.dtype), run.batch_spec(run.facts.batch_size))
    seconds = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        state, metrics = step(rng, state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    gpus = present_gpus()
    used = gpus[0].total_bytes - gpus[0].free_bytes if gpus else None
    return {
        "observed_gib": None if peak is None else peak / _GIB,
        "nvml_gib": None if used is None else used / _GIB,
        "step_s": statistics.median(seconds[2:]),
        "first_step_s": seconds[0],
    }


def _observed_apart(name: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.calibrate", "--observe", name],
        env={**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        return {"failed": last[:200]}


def _kept(path: Path) -> dict[str, dict[str, Any]]:
    """What was predicted, by point, from a file that `--output` wrote."""
    points = json.loads(path.read_text(encoding="utf-8"))["points"]
    return {point["name"]: {key: point[key] for key in ("tflop", "predicted_gib") if key in point} for point in points}


def main() -> None:
    """Prints a table, and writes the figures where `--output` says."""
    parser = argparse.ArgumentParser(prog="python -m bench.calibrate", description=__doc__.split("\n")[0])
    parser.add_argument("--target", default=None, help="predict for this GPU where none is here")
    parser.add_argument("--only", default="", help="only the points with this in their name")
    parser.add_argument("--output", type=Path, default=None, help="also write the figures there, as JSON")
    parser.add_argument(
        "--predictions",
        type=Path,
        default=None,
        help="take what was predicted from an earlier --output, made elsewhere",
    )
    parser.add_argument("--observe", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.observe is not None:
        print(json.dumps(observe(POINTS[arguments.observe])))
        return
    quiet_idle_plugin()
    gpus = present_gpus()
    here = known_as(gpus[0].name) if gpus else None
    try:
        spec = parse_target(arguments.target or "h100-80gb").spec if here is None else here
    except PreflightError as error:
        sys.exit(f"{error.message}\n  hint: {error.hint}")
    if here is None:
        print(f"No GPU that is known is here: predictions for {spec.title} only, nothing is calibrated.", flush=True)
    columns = ("predicted_gib", "compiled_gib", "observed_gib", "nvml_gib", "tflop", "step_s", "of_peak")
    print(f"{'':24}" + "".join(f"{name.removesuffix('_gib'):>12}" for name in columns) + "   error", flush=True)
    kept = None if arguments.predictions is None else _kept(arguments.predictions)
    rows = []
    for name, assignments in POINTS.items():
        if arguments.only not in name or (kept is not None and name not in kept):
            continue
        try:
            if kept is not None:
                row: dict[str, Any] = {"name": name, **kept[name]}
            else:
                row = {"name": name, **predict(spec, assignments, here=here is not None)}
        except PreflightError as error:
            row = {"name": name, "failed": error.message}
        if here is not None and "failed" not in row:
            row |= _observed_apart(name)
            if step_s := row.get("step_s"):
                row["of_peak"] = row["tflop"] * 1e12 / step_s / spec.bf16_flops_per_s
        rows.append(row)
        cells = "".join(f"{row[column]:12.4g}" if row.get(column) is not None else f"{'-':>12}" for column in columns)
        observed = row.get("observed_gib")
        error_text = f"{row['predicted_gib'] / observed - 1:+.1%}" if observed else row.get("failed", "-")
        print(f"{name:24}{cells}   {error_text}", flush=True)
    if arguments.output is not None:
        document = {
            "date": datetime.date.today().isoformat(),
            "gpu": spec.title,
            "calibrated": here is not None,
            "environment": environment(),
            "points": rows,
        }
        arguments.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
