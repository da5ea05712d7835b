"""A run and a machine with which nothing is wrong, for tests that break one thing and see one check speak."""

import dataclasses
from pathlib import Path

from checks import CHECKLIST
from checks.context import CheckContext, Probes
from preflight.checklist import run_checks
from preflight.runs import load_run
from preflight.telemetry.cpus import CpuCount
from preflight.telemetry.memory import MemoryLimit
from preflight.training.device_compile import StepMemory
from preflight.training.device_trial import Trial

EXAMPLE = str(Path(__file__).parent.parent / "examples" / "g1.toml")
GIB = 2**30
# Ten passes over the example's 498 frames, and a schedule that fits.
SOUND = ["num_train_steps=1245", "lr_schedule.decay_steps=1245", "save_interval=415", "keep_period=415"]
HEALTHY = Probes(
    cpus=lambda: CpuCount(2.0, "affinity"),
    memory=lambda: MemoryLimit(16 * GIB, 16 * GIB, "MemAvailable"),
    gpus=list,
    disk_free=lambda path: 100 * GIB,
    environ={},
    unreachable=lambda host, port: "no network in a test",
    # XLA itself answers in test_training_device_compile.
    compile=lambda step, device: StepMemory(
        arguments=1, outputs=1, aliases=1, temporaries=1, compiler="a test", seconds=0.0, rss_mib=0.0
    ),
    # A process really tries the devices in test_training_device_trial.
    trial=lambda variables: Trial(
        backend="gpu", devices=("a test",) * 8, seconds={"start": 0.0, "compute": 0.0, "exchange": 0.0}
    ),
)
# Each has tests of its own.
LOADING = ("memory.workers", "loader.first-batch", "loader.throughput", "loader.starvation")  # they start workers
STEPPING = ("step.contract", "step.recompile", "grad.finite")  # they trace or make whole steps
REHEARSING = ("storage.write",)  # it writes a checkpoint
TARGETED = ("step.roofline",)  # speaks of a GPU, on which a toy model is no good fit
APART = (*LOADING, *REHEARSING)  # each starts processes, which takes seconds
SLOW = (*APART, *STEPPING, *TARGETED)


def context(*assignments, run=None, **changes):
    probes = dataclasses.replace(HEALTHY, **changes.pop("probes", {}))
    run = run or load_run(EXAMPLE, assignments=[*SOUND, *assignments])
    return CheckContext(run=run, probes=probes, **changes)


def run_all(checked, without=SLOW):
    return {r.check.id: r for r in run_checks([c for c in CHECKLIST if c.id not in without], checked, max_parallel=1)}


def spoken(results):
    return {id_ for id_, result in results.items() if result.status in ("warn", "fail", "error")}


def the_one_that_speaks(checked, id_, without=SLOW):
    results = run_all(checked, without)
    assert spoken(results) == {id_}, {i: results[i].outcome.summary for i in spoken(results)}
    return results[id_].outcome


def outcome_of(id_, checked):
    """What one check says, run with those that it requires and no others; they must be silent."""
    by_id = {check.id: check for check in CHECKLIST}
    wanted, left = set(), [id_]
    while left:
        wanted.add(name := left.pop())
        left += by_id[name].requires
    results = run_all(checked, without=by_id.keys() - wanted)
    assert spoken(results) <= {id_}
    return results[id_].outcome
