"""`config.fsdp` and `env.hosts`: GPUs and the environment of launchers, injected."""

import dataclasses

import pytest
from healthy import EXAMPLE, GIB, SLOW, SOUND, context, spoken

from checks import CHECKLIST
from checks.devices_config import FSDP, HOSTS
from preflight.checklist import run_checks
from preflight.runs import load_run
from preflight.telemetry.devices import PresentGpu
from preflight.telemetry.targets import parse_target


def gpus(count):
    return lambda: [
        PresentGpu(index=i, name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB, free_bytes=80 * GIB, driver="570")
        for i in range(count)
    ]


def sharded(shards, count=0, *, target=None, **environ):
    """The healthy run with openpi's setting, on so many GPUs."""
    run = load_run(EXAMPLE, assignments=SOUND)
    run.facts = dataclasses.replace(
        run.facts, fsdp_devices=shards, settings={**run.facts.settings, "fsdp_devices": shards}
    )
    probes = {"gpus": gpus(count), "environ": environ}
    return context(run=run, probes=probes, target=None if target is None else parse_target(target))


def results_of(checked):
    without = {*SLOW, "env.accelerator", "storage.write", FSDP.id, HOSTS.id}
    checks = [*(check for check in CHECKLIST if check.id not in without), FSDP, HOSTS]
    return {result.check.id: result for result in run_checks(checks, checked, max_parallel=1)}


def the_one_that_speaks(checked, id_):
    results = results_of(checked)
    assert spoken(results) == {id_}, {i: results[i].outcome.summary for i in spoken(results)}
    return results[id_].outcome


def test_a_healthy_run_is_silent():
    results = results_of(context())
    assert spoken(results) == set()
    assert results[FSDP.id].outcome.summary == (
        "fsdp_devices is 1: every GPU would hold the whole state; no GPU is here and --target names none"
    )
    assert results[HOSTS.id].outcome.summary.startswith("one process: ")


def test_shards_that_do_not_divide_the_gpus_trip_fsdp_alone():
    outcome = the_one_that_speaks(sharded(3, 4), FSDP.id)
    assert outcome.status == "fail"
    assert outcome.summary == (
        "fsdp_devices 3 does not divide 4 visible GPUs: it does not choose GPUs, all that are visible are used"
    )
    assert outcome.expected == {"fsdp_devices": [1, 2, 4]}
    assert outcome.hint.commands[0].endswith("--set fsdp_devices=2")
    assert outcome.hint.commands[1].startswith("CUDA_VISIBLE_DEVICES=0,1,2 preflight check ")


@pytest.mark.parametrize(
    ("shards", "count", "summary"),
    [
        (1, 1, "1 visible GPU holds the whole state (fsdp_devices 1)"),
        (1, 4, "all 4 visible GPUs share each batch and each holds the whole state (fsdp_devices 1)"),
        (
            2,
            4,
            "all 4 visible GPUs share each batch and hold 2 copies of the state, each sharded over 2 (fsdp_devices 2)",
        ),
        (
            4,
            4,
            "all 4 visible GPUs share each batch and hold one copy of the state, each sharded over 4 (fsdp_devices 4)",
        ),
    ],
)
def test_shards_that_divide_are_explained(shards, count, summary):
    outcome = FSDP.run(sharded(shards, count))
    assert (outcome.status, outcome.summary) == ("pass", summary)


def test_more_shards_than_gpus():
    outcome = FSDP.run(sharded(8, 2))
    assert outcome.status == "fail"
    (command,) = outcome.hint.commands
    assert command.endswith("--set fsdp_devices=2")


def test_visible_gpus_count_and_a_targets_do():
    assert FSDP.run(sharded(2, 4, CUDA_VISIBLE_DEVICES="1,3")).status == "pass"
    assert FSDP.run(sharded(3, 4, CUDA_VISIBLE_DEVICES="0,1,2")).status == "pass"
    outcome = FSDP.run(sharded(3, 4, CUDA_VISIBLE_DEVICES="4,5,6,7"))
    assert outcome.status == "skip"  # none of those is here
    assert FSDP.run(sharded(2)).summary == "fsdp_devices is 2; no GPU is here and --target names none"
    assert FSDP.run(sharded(2, target="8xh100-80gb")).status == "pass"
    outcome = FSDP.run(sharded(3, target="8xh100-80gb"))
    assert outcome.summary.startswith("fsdp_devices 3 does not divide 8 x NVIDIA H100 SXM 80 GB: ")
    assert len(outcome.hint.commands) == 1


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "node[1-2]"}, "srun started 8 tasks"),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4"}, "srun started 4 tasks"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, "JAX_COORDINATOR_ADDRESS=10.0.0.1:1234"),
    ],
)
def test_several_processes_trip_hosts_alone(environ, said):
    outcome = the_one_that_speaks(context(probes={"environ": environ}), HOSTS.id)
    assert outcome.status == "fail"
    assert said in outcome.summary
    assert "and fight for the same folder" in outcome.summary


def test_a_batch_script_of_several_tasks_is_one_process_and_warned_of():
    outcome = the_one_that_speaks(context(probes={"environ": {"SLURM_NTASKS": "8"}}), HOSTS.id)
    assert outcome.status == "warn"
    assert outcome.summary == "the Slurm job has 8 tasks and the training is one: srun would start it 8 times"


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1", "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"JAX_COORDINATOR_ADDRESS": ""},
        {"SLURM_NTASKS": ""},
    ],
)
def test_one_process_passes_however_it_was_started(environ):
    assert HOSTS.run(context(probes={"environ": environ})).status == "pass"
