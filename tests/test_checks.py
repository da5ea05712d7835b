"""Every check against a healthy run, on which it is silent, and against the fault that trips it, alone."""

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from healthy import (
    APART,
    EXAMPLE,
    GIB,
    REHEARSING,
    SOUND,
    STEPPING,
    context,
    outcome_of,
    run_all,
    spoken,
    the_one_that_speaks,
)

from bench.statistics import Estimate
from checks import CHECKLIST
from checks.sweep import loader_sweep
from preflight.checklist import run_checks
from preflight.runs import load_run
from preflight.runs.native import NativeRun
from preflight.telemetry.devices import PresentGpu
from preflight.telemetry.memory import MemoryLimit


def test_a_healthy_run_is_silent():
    results = run_all(context(), without=APART)
    assert spoken(results) == set()
    skipped = {id_ for id_, result in results.items() if result.status == "skip"}
    assert skipped == {
        "env.accelerator",
        "env.devices",
        "config.expectations",
        "config.fsdp",
        "config.weights",
        "step.roofline",
        "storage.resume",
    }
    assert "gradients exactly the trainable tree" in results["grad.has-aux"].outcome.summary
    assert "every file is there" in results["data.metadata"].outcome.summary
    assert "2 passes" not in results["config.epochs"].outcome.summary
    assert results["config.epochs"].outcome.summary == "10 passes over 498 frames"


def test_every_check_is_documented_and_has_known_failures_that_exist():
    failures = {f"F{n:02d}" for n in range(1, 53)}
    for check in CHECKLIST:
        assert len(check.doc) > 60, check.id
        assert set(check.failures) <= failures, check.id


@pytest.mark.parametrize(
    ("id_", "assignments", "changes", "summary"),
    [
        ("config.expectations", [], {"expect": {"num_workers": 8}}, "1 of 1 expectations are not met"),
        (
            "config.batch",
            ["batch_size=600", "num_train_steps=5", "lr_schedule.decay_steps=5", "lr_schedule.warmup_steps=1"],
            {},
            "the dataset has 498 frames, fewer than one batch of 600",
        ),
        ("config.workers", ["num_workers=8"], {}, "8 workers share 2 CPU cores (affinity)"),
        ("config.workers", ["num_workers=0"], {}, "num_workers is 0"),
        ("config.milestones", ["milestones=[0, 1245]"], {}, "step 1245 never comes: 1245 steps are 0 … 1244"),
        ("config.checkpoints", ["keep_period=1000"], {}, "keep_period 1000 and save_interval 415 never meet"),
        (
            "config.schedule",
            ["lr_schedule.decay_steps=30000"],
            {},
            "the decay is laid out for 30,000 steps, the run ends at 1,245: 100% of the way",
        ),
        (
            "config.schedule",
            ["lr_schedule.decay_steps=200"],
            {},
            "the learning rate sits at its floor for the last 1,045 of 1,245 steps",
        ),
        (
            "config.schedule",
            ["lr_schedule.warmup_steps=2000", "lr_schedule.decay_steps=3000"],
            {},
            "the learning rate never reaches its peak",
        ),
        (
            "config.epochs",
            ["num_train_steps=10", "lr_schedule.decay_steps=10", "lr_schedule.warmup_steps=1"],
            {},
            "10 steps of 4 are 0.0803 passes over 498 frames",
        ),
        ("config.freeze", ["freeze=['.*']"], {}, "freeze matches every parameter: nothing would be trained"),
        ("config.freeze", ["freeze=['nosuch']"], {}, "freeze pattern 'nosuch' matches no parameter"),
        ("config.expectations", [], {"expect": {"wandb_enabled": 1}}, "1 of 1 expectations are not met"),
        ("config.ema", ["ema_decay=0.9999"], {}, "looks back 10,000 steps, the run has 1,245"),
        ("config.ema", ["ema_decay=0.9", "freeze=['.*/img/.*']"], {}, "while parameters are frozen"),
        ("data.features", ["data.state=observation.stat"], {}, "observation.stat"),
        ("storage.checkpoint-dir", [f"checkpoint_base_dir={EXAMPLE}/below"], {}, "is a file"),
        ("storage.space", [], {"probes": {"disk_free": lambda path: 2**20}}, "not even one fits"),
        ("storage.space", [], {"probes": {"disk_free": lambda path: 10 * 2**20}}, "4 checkpoints of 5.9 MiB need"),
        (
            "memory.device",
            [],
            {"probes": {"environ": {"XLA_PYTHON_CLIENT_MEM_FRACTION": "5"}}},
            "is not a share between 0 and 1",
        ),
        (
            "memory.device",
            [],
            {"probes": {"memory": lambda: MemoryLimit(2**20, GIB, "cgroup v2 memory.max (/job)")}},
            "no accelerator, so host RAM: parameters, optimizer, EMA, gradients and batch take 9.6 MiB",
        ),
        (
            "tracking.wandb",
            [],
            {"probes": {"environ": {"WANDB_API_KEY": "k", "WANDB_BASE_URL": "http://127.0.0.1:9"}}},
            "127.0.0.1:9 does not answer",
        ),
        (
            "env.accelerator",
            [],
            {
                "probes": {
                    "gpus": lambda: [PresentGpu(index=0, name="H100", total_bytes=80 * GIB, free_bytes=0, driver="1")]
                }
            },
            "sees only the CPU",
        ),
    ],
)
def test_a_fault_trips_its_check_alone(id_, assignments, changes, summary):
    outcome = the_one_that_speaks(context(*assignments, **changes), id_)
    assert summary in outcome.summary
    assert outcome.hint is not None


def test_expectations_that_are_met_pass_and_an_unknown_key_is_named():
    results = run_all(context(expect={"num_workers": 2, "data.state": "observation.state"}))
    assert results["config.expectations"].outcome.summary.startswith("2 expectations met: num_workers = 2")
    outcome = the_one_that_speaks(context(expect={"num_worker": 2}), "config.expectations")
    assert "did you mean 'num_workers'?" in outcome.evidence[0]


@pytest.fixture
def dataset(tmp_path):
    copy = tmp_path / "g1"
    shutil.copytree(Path(EXAMPLE).parent / "data" / "g1", copy)
    return copy


def test_a_missing_video_trips_data_metadata_and_blocks_the_rest(dataset):
    video = next(dataset.rglob("*.mp4"))
    video.unlink()
    results = run_all(context(f"data.root={dataset}"))
    assert spoken(results) == {"data.metadata"}
    outcome = results["data.metadata"].outcome
    assert str(video) in outcome.summary
    for blocked in ("config.batch", "config.epochs", "data.sample"):
        assert results[blocked].outcome.summary == "blocked by data.metadata"


def test_a_nan_in_the_state_trips_data_norm_stats(dataset):
    file = next((dataset / "data").rglob("*.parquet"))
    table = pq.read_table(file)
    field = table.schema.field("observation.state")
    values = table["observation.state"].to_pylist()
    values[0][3] = float("nan")
    at = table.schema.get_field_index("observation.state")
    pq.write_table(table.set_column(at, field, pa.array(values, field.type)), file)
    outcome = the_one_that_speaks(context(f"data.root={dataset}"), "data.norm-stats")
    assert "NaN" in outcome.summary


def test_a_run_with_every_camera_masked_out_trips_data_sample():
    outcome = the_one_that_speaks(context("data.cameras={}", run=_blind_run()), "data.sample")
    assert "every camera is masked out" in outcome.summary


def _blind_run():
    run = load_run(EXAMPLE, assignments=SOUND)
    config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, cameras={}))
    return NativeRun(config)


def test_the_full_model_does_not_train_here_and_the_figures_are_said():
    checked = context(run=load_run("pi0_lighter_cup_trossen"))
    outcome = outcome_of("memory.device", checked)
    assert outcome.status == "fail"
    assert outcome.summary == (
        "no accelerator, so host RAM: parameters, optimizer, EMA, gradients and batch take 48.3 GiB "
        "(parameters 12.1 GiB, optimizer 24.1 GiB, gradients 12.1 GiB), of 16.0 GiB"
    )
    assert outcome.measured["parameters_gib"] == round(3_238_048_528 * 4 / GIB, 2)
    assert "h100-80gb" in outcome.hint.text
    assert "a100-40gb" not in outcome.hint.text
    assert outcome.hint.text.startswith("its state and gradients fit with a GPU whose memory holds the state (")


@pytest.fixture(scope="module")
def measured():
    """One real sweep of the example's loader."""
    checked = context()
    return loader_sweep(checked)


def with_sweep(sweep):
    checked = context()
    checked.once("loader-sweep", lambda: sweep)
    return run_checks([check for check in CHECKLIST if check.id not in (*STEPPING, *REHEARSING)], checked)


def test_a_measured_loader_passes_with_its_figures(measured):
    results = {r.check.id: r for r in with_sweep(measured)}
    assert spoken(results) == set()
    assert "MiB PSS each" in results["memory.workers"].outcome.summary
    assert results["memory.workers"].outcome.measured["pss_per_worker_mib"] > 10
    assert "samples/s" in results["loader.throughput"].outcome.summary
    assert json.dumps(dict(results["loader.throughput"].outcome.measured))


def test_workers_that_do_not_fit_trip_memory_workers_alone(measured):
    tight = dataclasses.replace(measured.memory, limit_mib=measured.memory.baseline_mib + 10, limit_source="cgroup")
    results = {r.check.id: r for r in with_sweep(dataclasses.replace(measured, memory=tight))}
    assert spoken(results) == {"memory.workers"}
    assert results["memory.workers"].status == "fail"
    assert "(cgroup)" in results["memory.workers"].outcome.summary


def test_a_faster_number_of_workers_trips_throughput_alone(measured):
    (own,) = measured.points
    faster = dataclasses.replace(own, num_workers=1, samples_per_s=Estimate(9e5, 8.9e5, 9.1e5))
    results = {r.check.id: r for r in with_sweep(dataclasses.replace(measured, points=(faster, own)))}
    assert spoken(results) == {"loader.throughput"}
    assert "1 workers were faster: 900,000 samples/s" in results["loader.throughput"].outcome.summary
