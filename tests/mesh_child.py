"""The same three steps on one and on four virtual CPU devices: `python mesh_child.py FOLDER`, writes JSON.

A process of its own, since the number of devices is settled when jax starts.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",  # the last one counts
    "JAX_PLATFORMS": "cpu",
    "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",
}

import jax
import numpy as np

from preflight.data.loader import BatchLoader
from preflight.runs import load_run
from preflight.training import checkpoints, mesh
from preflight.training.folder import run_folder
from preflight.training.loop import train
from preflight.training.state import abstract_state, first_state, state_sharding
from preflight.training.step import compile_step

EXAMPLE = str(Path(__file__).parent.parent / "examples" / "g1.toml")
STEPS = 3
ASSIGNMENTS = [
    "model.siglip_variant=mu/112",
    "model.action_horizon=4",
    "batch_size=4",
    "num_workers=0",
    f"num_train_steps={STEPS}",
    "log_interval=1",
    "lr_schedule.warmup_steps=2",
    "lr_schedule.decay_steps=6",
    # Small: where a gradient is rounding noise, Adam makes a whole step of it.
    "lr_schedule.peak_lr=2e-4",
    "ema_decay=0.9",
    "wandb_enabled=false",
]


def flat(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def shardings(state):
    return [leaf.sharding for leaf in jax.tree.leaves(state)]


def farthest(a, b):
    return max(float(np.max(np.abs(x.astype(np.float64) - y))) for x, y in zip(a, b, strict=True))


def on_one_device(run):
    """The losses and the last state."""
    where = mesh.make_mesh(1, jax.devices()[:1])
    init, rng = run.keys()
    state = first_state(run, init, state_sharding(run, where))
    step, losses = compile_step(run, where), []
    with BatchLoader(run.dataset(), batch_size=4, num_workers=0, seed=run.facts.seed) as loader:
        for _ in range(STEPS):
            state, metrics = step(rng, state, mesh.put_batch(next(loader), where))
            losses.append(float(metrics["loss"]))
    return losses, flat(state)


def main(folder):
    # The toy's arrays are all below openpi's bound: shard them none the less.
    mesh.MIN_SHARDED_BYTES = 1024
    run = load_run(EXAMPLE, assignments=[*ASSIGNMENTS, f"checkpoint_base_dir={folder}"])
    losses, reference = on_one_device(run)
    sharded = load_run(EXAMPLE, assignments=[*ASSIGNMENTS, f"checkpoint_base_dir={folder}", "fsdp_devices=2"])
    summary = train(sharded, run_folder(sharded.facts, "sharded"), say=lambda line: None)
    records = [json.loads(line) for line in (summary.folder / "metrics.jsonl").read_text().splitlines()]
    found = {"one": losses, "four": [record["loss"] for record in records]}
    manager = checkpoints.open_manager(summary.folder, keep_period=None)
    for name, (devices, shards) in {"one": (1, 1), "fsdp=2": (2, 2), "fsdp=4": (4, 4)}.items():
        abstract = abstract_state(run, mesh.make_mesh(shards, jax.devices()[:devices]))
        state = checkpoints.restore(manager, STEPS - 1, abstract)
        found[f"restored on {name}"] = {
            "farthest": farthest(flat(state), reference),
            "as asked": shardings(state) == shardings(abstract),
            "sharded leaves": sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)),
        }
    manager.close()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
