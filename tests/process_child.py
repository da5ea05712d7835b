"""One of two processes that train the toy together: `python process_child.py ADDRESS INDEX`, writes JSON."""

import json
import os
import sys

os.environ |= {
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
    "JAX_PLATFORMS": "cpu",
}

import jax
from toy_run import batch_of, toy_run

from preflight.training.interval import IntervalMetrics
from preflight.training.mesh import local_rows, make_mesh, put_batch
from preflight.training.state import first_state, state_sharding
from preflight.training.step import compile_step


def main(address, index):
    jax.distributed.initialize(address, num_processes=2, process_id=index)
    run = toy_run("lr_schedule.warmup_steps=1", "ema_decay=0.9")
    mesh = make_mesh(2)
    rows = local_rows(run.facts.batch_size, mesh)
    state = first_state(run, jax.random.key(0), state_sharding(run, mesh))
    step, interval = compile_step(run, mesh), IntervalMetrics(3)
    for number in range(3):
        mine = jax.tree.map(lambda x: x[rows], batch_of(run, number))
        state, metrics = step(jax.random.key(1), state, put_batch(mine, mesh))
        interval.add(number, metrics)
    losses = interval.fetch().each()["loss"].tolist()
    sys.stdout.write(json.dumps({"rows": [rows.start, rows.stop], "losses": losses}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
