"""Every check against a healthy run, on which it is silent, and against the fault that trips it, alone."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.statistics import Estimate
from checks import CHECKLIST, tree
from checks.context import CheckContext, Probes
from checks.grad import contract_problems
from checks.memory import CHECKS as MEMORY_CHECKS
from checks.sweep import loader_sweep
from preflight.checklist import run_checks
from preflight.runs import load_run
from preflight.runs.native import NativeRun
from preflight.telemetry.cpus import CpuCount
from preflight.telemetry.devices import PresentGpu
from preflight.telemetry.memory import MemoryLimit

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
)
SLOW = ("memory.workers", "loader.throughput")  # they start workers; each has tests of its own below


def context(*assignments, run=None, **changes):
    probes = dataclasses.replace(HEALTHY, **changes.pop("probes", {}))
    run = run or load_run(EXAMPLE, assignments=[*SOUND, *assignments])
    return CheckContext(run=run, probes=probes, **changes)


def run_all(checked, without=SLOW):
    return {r.check.id: r for r in run_checks([c for c in CHECKLIST if c.id not in without], checked, max_parallel=1)}


def spoken(results):
    return {id_ for id_, result in results.items() if result.status in ("warn", "fail", "error")}


def the_one_that_speaks(checked, id_):
    results = run_all(checked)
    assert spoken(results) == {id_}, {i: results[i].outcome.summary for i in spoken(results)}
    return results[id_].outcome


def test_a_healthy_run_is_silent():
    results = run_all(context())
    assert spoken(results) == set()
    skipped = {id_ for id_, result in results.items() if result.status == "skip"}
    assert skipped == {"env.accelerator", "config.expectations"}
    assert "gradients exactly the trainable tree" in results["grad.has-aux"].outcome.summary
    assert "every file is there" in results["data.present"].outcome.summary
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
        ("config.ema", ["ema_decay=0.9", "freeze=['.*llm.*']"], {}, "while parameters are frozen"),
        ("data.sample", ["data.state=observation.stat"], {}, "observation.stat"),
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


def test_a_missing_video_trips_data_present_and_blocks_the_rest(dataset):
    video = next(dataset.rglob("*.mp4"))
    video.unlink()
    results = run_all(context(f"data.root={dataset}"))
    assert spoken(results) == {"data.present"}
    outcome = results["data.present"].outcome
    assert str(video) in outcome.summary
    assert outcome.evidence == (str(video),)
    for blocked in ("config.batch", "config.epochs", "data.sample"):
        assert results[blocked].outcome.summary == "blocked by data.present"


def test_a_nan_in_the_state_trips_data_sample(dataset):
    file = next((dataset / "data").rglob("*.parquet"))
    table = pq.read_table(file)
    field = table.schema.field("observation.state")
    values = table["observation.state"].to_pylist()
    values[0][3] = float("nan")
    at = table.schema.get_field_index("observation.state")
    pq.write_table(table.set_column(at, field, pa.array(values, field.type)), file)
    outcome = the_one_that_speaks(context(f"data.root={dataset}"), "data.sample")
    assert "NaN" in outcome.summary


def test_a_run_with_every_camera_masked_out_trips_data_sample():
    outcome = the_one_that_speaks(context("data.cameras={}", run=_blind_run()), "data.sample")
    assert "every camera is masked out" in outcome.summary


def _blind_run():
    run = load_run(EXAMPLE, assignments=SOUND)
    config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, cameras={}))
    return NativeRun(config)


class Broken(NativeRun):
    """A run whose loss went through `spoil`."""

    def __init__(self, spoil):
        super().__init__(load_run(EXAMPLE, assignments=SOUND).config)
        self.spoil = spoil

    def compute_loss(self, model, rng, batch, *, train):
        return self.spoil(super().compute_loss(model, rng, batch, train=train))


def _raise(loss):
    raise KeyError("no such camera")


@pytest.mark.parametrize(
    ("spoil", "summary"),
    [
        (lambda loss: loss.mean(), "aux has shape [], expected [4, 50] (batch, horizon)"),
        (lambda loss: loss.mean(axis=1), "aux has shape [4], expected [4, 50] (batch, horizon)"),
        (lambda loss: loss[..., None], "aux has shape [4, 50, 1], expected [4, 50]"),
        (lambda loss: (loss, loss), "the loss cannot be differentiated"),
        (lambda loss: loss.astype(jnp.bfloat16), "the loss is bfloat16: its mean should be taken in float32"),
        (_raise, "the loss cannot be differentiated: KeyError: 'no such camera'"),
    ],
)
def test_a_broken_loss_trips_has_aux_alone(spoil, summary):
    outcome = the_one_that_speaks(context(run=Broken(spoil)), "grad.has-aux")
    assert summary in outcome.summary
    assert "has_aux=True" in outcome.hint.text


def test_a_loss_that_raises_is_shown_with_the_users_line():
    outcome = the_one_that_speaks(context(run=Broken(_raise)), "grad.has-aux")
    assert any("test_checks.py" in line and "no such camera" in line for line in outcome.evidence)


def test_the_contract_is_explained_in_plain_words():
    loss, aux, leaf = (jnp.zeros(shape) for shape in ((), (4, 50), (3,)))
    trained = {"w": leaf}
    good = ((loss, aux), {"w": leaf})
    assert contract_problems(good, (4, 50), trained) == []
    assert contract_problems(loss, (4, 50), trained) == [
        f"value_and_grad returned {type(loss).__name__}, not the pair ((loss, aux), grads)"
    ]
    assert "has_aux=True is missing" in contract_problems((loss, {"w": leaf}), (4, 50), trained)[0]
    swapped = contract_problems(((aux, loss), {"w": leaf}), (4, 50), trained)
    assert "the loss has shape [4, 50]: it must be a scalar" in swapped[0]
    assert "aux has shape []" in swapped[1]
    assert contract_problems(((jnp.int32(0), aux), {"w": leaf}), (4, 50), trained) == [
        "the loss is int32: only a floating loss has a gradient"
    ]
    assert contract_problems(((loss, aux), {}), (4, 50), trained) == ["w is trainable and gets no gradient"]
    assert contract_problems(((loss, aux), {"w": leaf, "v": leaf}), (4, 50), trained) == [
        "v is frozen and gets a gradient"
    ]
    assert contract_problems(((loss, aux), {"w": aux}), (4, 50), trained) == ["w: gradient [4, 50], parameter [3]"]


@pytest.mark.parametrize(
    ("name", "broken", "case"),
    [
        ("abs_max", lambda t: jnp.float32(max((float("-inf"),))), "abs_max of an empty tree"),
        ("global_norm", lambda t: jnp.float32(0), "global_norm of the run's tree"),
    ],
)
def test_a_wrong_reduction_trips_tree_reduce_alone(monkeypatch, name, broken, case):
    from preflight.training import metrics

    monkeypatch.setattr(metrics, name, broken)
    tree._reductions.cache_clear()
    try:
        outcome = the_one_that_speaks(context(), "tree.reduce")
    finally:
        tree._reductions.cache_clear()
    assert any(case in line for line in outcome.evidence)


def test_a_maximum_that_hides_nan_trips_tree_reduce(monkeypatch):
    import jax

    from preflight.training import metrics

    hiding = lambda t: jax.tree.reduce(jnp.fmax, jax.tree.map(lambda x: jnp.nanmax(jnp.abs(x)), t), jnp.float32(0))  # noqa: E731
    monkeypatch.setattr(metrics, "abs_max", hiding)
    tree._reductions.cache_clear()
    try:
        problems = tree.reduction_problems("a tree with NaN", {"w": np.array([1.0, np.nan], np.float32)})
    finally:
        tree._reductions.cache_clear()
    assert problems == ["abs_max of a tree with NaN is 1, numpy says nan"]


def test_the_full_model_does_not_train_here_and_the_figures_are_said():
    checked = context(run=load_run("pi0_lighter_cup_trossen"))
    (result,) = run_checks([c for c in MEMORY_CHECKS if c.id == "memory.device"], checked)
    assert result.status == "fail"
    assert result.outcome.summary == (
        "no accelerator, so host RAM: parameters, optimizer, EMA, gradients and batch take 48.3 GiB "
        "(parameters 12.1 GiB, optimizer 24.1 GiB, gradients 12.1 GiB), of 16.0 GiB"
    )
    assert result.outcome.measured["parameters_gib"] == round(3_238_048_528 * 4 / GIB, 2)
    assert "h100-80gb" in result.outcome.hint.text
    assert "a100-40gb" not in result.outcome.hint.text


@pytest.mark.parametrize(
    ("target", "fraction", "status"),
    [("h100-80gb", "0.95", "pass"), ("h100-80gb", None, "pass"), ("a100-40gb", "0.95", "fail"), ("h200", None, "pass")],
)
def test_a_target_gpu_is_judged_without_one_present(target, fraction, status):
    environ = {} if fraction is None else {"XLA_PYTHON_CLIENT_MEM_FRACTION": fraction}
    checked = context(run=load_run("pi0_lighter_cup_trossen"), target=target, probes={"environ": environ})
    (result,) = run_checks([c for c in MEMORY_CHECKS if c.id == "memory.device"], checked)
    assert result.status == status
    assert "activations come on top" in " ".join([result.outcome.summary, *result.outcome.evidence])


@pytest.fixture(scope="module")
def measured():
    """One real sweep of the example's loader."""
    checked = context()
    return loader_sweep(checked)


def with_sweep(sweep):
    checked = context()
    checked.once("loader-sweep", lambda: sweep)
    return run_checks(CHECKLIST, checked)


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
