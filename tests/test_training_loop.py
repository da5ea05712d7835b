"""The training loop on a real recording, with a tiny model: what it leaves, how it resumes, what it refuses."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from preflight.errors import DataError, PreflightError, UsageError
from preflight.runs import load_run
from preflight.training import checkpoints
from preflight.training.camera_views import milestone_steps
from preflight.training.folder import create_folder, kept_steps, refuse_folder, run_folder, save_steps, saved_steps
from preflight.training.loop import train
from preflight.training.state import init_state
from preflight.training.step import compile_step

EXAMPLE = str(Path(__file__).parent.parent / "examples" / "g1.toml")
# Four tokens an image: what is tested is the loop, not the model.
TINY = [
    "model.siglip_variant=mu/112",
    "model.action_horizon=4",
    "batch_size=2",
    "num_workers=0",
    "num_train_steps=6",
    "log_interval=2",
    "save_interval=3",
    "keep_period=3",
    "lr_schedule.warmup_steps=2",
    "lr_schedule.decay_steps=6",
]
# DESIGN's names; `ema_distance` only with a moving average, `efficiency/*` not at the first step.
METRICS = {
    "loss",
    "grad_norm",
    "param_norm",
    "loss_std",
    "loss_max",
    "loss_min",
    "grad_max",
    "grad_mean",
    "update_norm",
    "update_ratio",
    "learning_rate",
}
EFFICIENCY = {f"efficiency/{name}" for name in ("steps_per_sec", "samples_per_sec", "time_per_step", "data_wait")}


def tiny_run(base, *assignments):
    return load_run(EXAMPLE, assignments=[*TINY, f"checkpoint_base_dir={base}", *assignments])


def fly(run, name="run", **options):
    said = []
    summary = train(run, run_folder(run.facts, name), **{"say": said.append, "report": None} | options)
    return summary, said


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def params_of(folder, step, run):
    manager = checkpoints.open_manager(folder, keep_period=None)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(lambda key: init_state(run, key), jax.random.key(0))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
    state = checkpoints.restore(manager, step, abstract)
    manager.close()
    return state


@pytest.fixture(scope="module")
def flown(tmp_path_factory):
    """One finished run, looked at by several tests."""
    base = tmp_path_factory.mktemp("flown")
    run = tiny_run(base)
    summary, said = fly(run, clearance={"verdict": "cleared"})
    return run, summary, said


def test_a_run_leaves_what_it_says(flown):
    _, summary, said = flown
    folder = summary.folder
    assert (summary.steps, summary.checkpoints, summary.interrupted) == (6, (3, 5), False)
    assert said[0] == "Training config: g1 with 0 workers"
    assert said[1] == "wandb: offline (WANDB_MODE=offline)"
    assert said[2].startswith("Step 0: loss=")
    assert re.search(r" | compiled in \d+\.\d s, first step \d+\.\d\d s$", said[2])
    assert said[3].startswith("Step 2: loss=")
    assert " | " in said[3]
    assert said[3].endswith("steps/s")
    assert json.loads((folder / "clearance.json").read_text()) == {"verdict": "cleared"}
    assert (folder / "wandb_id.txt").read_text().strip() in next((folder / "wandb").glob("offline-run-*")).name
    assert str(next((folder / "wandb").glob("offline-run-*"))) in summary.wandb_sync
    assert sorted(p.name for p in (folder / "3").iterdir() if p.is_dir()) == ["assets", "params", "train_state"]
    stats = json.loads((folder / "5/assets/g1/norm_stats.json").read_text())["norm_stats"]
    assert len(stats["state"]["mean"]) == 26


def test_every_metric_is_logged_by_its_name(flown):
    _, summary, _ = flown
    logged = records(summary.folder)
    assert [record["step"] for record in logged] == [0, 2, 4, 5]
    assert logged[0].keys() == {"step", "time", *METRICS}
    for record in logged[1:]:
        assert record.keys() == {"step", "time", *METRICS, *EFFICIENCY}
        assert record["loss_min"] <= record["loss"] <= record["loss_max"]
        assert record["grad_mean"] <= record["grad_max"] <= record["grad_norm"]
        assert record["update_ratio"] == pytest.approx(record["update_norm"] / record["param_norm"], rel=0.05)
        assert record["efficiency/samples_per_sec"] == pytest.approx(2 * record["efficiency/steps_per_sec"])
        assert record["efficiency/time_per_step"] == pytest.approx(1 / record["efficiency/steps_per_sec"])
    # openpi's schedule: the warm-up starts at peak / (warm-up + 1).
    assert logged[0]["learning_rate"] == pytest.approx(1e-3 / 3)
    assert logged[1]["learning_rate"] == pytest.approx(1e-3)


def test_camera_views_come_at_the_milestones_from_the_training_batch(flown):
    run, summary, _ = flown
    assert [p.name for p in summary.camera_views] == ["step_000000.png", "step_000003.png", "step_000005.png"]
    picture = np.asarray(Image.open(summary.camera_views[0]))
    # One camera of the example, two samples side by side: exactly the first batch's pixels.
    assert picture.shape == (224, 448, 3)
    from preflight.data.sampler import batch_indices

    first, second = batch_indices(498, 2, run.facts.seed, 0)
    dataset = run.dataset()
    wanted = [dataset[int(i)]["image"]["base_0_rgb"] for i in (first, second)]
    np.testing.assert_array_equal(picture, np.concatenate(wanted, axis=1))


def test_a_resumed_run_ends_bit_identical(flown, tmp_path):
    run, summary, _ = flown
    base = tmp_path / "again"
    folder = base / "g1" / "run"
    shutil.copytree(summary.folder, folder)
    shutil.rmtree(folder / "5")  # as if killed after step 3 was saved
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": ')  # and in the middle of a line
    again = tiny_run(base)
    resumed, said = fly(again, resume=True)
    assert (resumed.steps, resumed.checkpoints) == (2, (3, 5))
    assert said[2].startswith("Step 4:")
    straight, picked_up = params_of(summary.folder, 5, run), params_of(folder, 5, again)
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(picked_up), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [r["step"] for r in records(folder)] == [0, 2, 4, 5]
    for name in METRICS:
        # Step 4 is logged as the first of the resumed run; the last interval is step 5 alone in both.
        assert records(folder)[-1][name] == records(summary.folder)[-1][name], name
    assert (folder / "wandb_id.txt").read_text() == (summary.folder / "wandb_id.txt").read_text()


def test_a_finished_run_has_nothing_left_to_resume(flown):
    run, _, _ = flown
    with pytest.raises(UsageError, match="is complete: 6 of 6 steps"):
        fly(run, resume=True)


def test_a_taken_folder_is_refused_and_kept(flown):
    run, summary, _ = flown
    with pytest.raises(UsageError, match=r"already exists and holds 2 checkpoint\(s\): 3, 5") as caught:
        fly(run)
    assert "--resume" in caught.value.hint
    assert saved_steps(summary.folder) == [3, 5]


def test_a_checkpoint_of_another_model_is_named(flown, tmp_path):
    _, summary, _ = flown
    folder = tmp_path / "g1" / "run"
    shutil.copytree(summary.folder, folder)
    shutil.rmtree(folder / "5")
    (folder / "config.json").unlink()  # which would refuse before the checkpoint is looked at
    encoder = "encoder_norm/bias is [32] in the checkpoint, [192] in the config"
    for other, why, hint in (
        ("model.siglip_variant=Ti/112", encoder, "belongs to another config"),
        ("ema_decay=0.9", "train_state lacks params/PaliGemma/img", "no moving average: --set ema_decay=none"),
        ("freeze=['.*/img/.*']", "train_state has opt_state/1/0/mu/PaliGemma/img", "trains other parameters"),
    ):
        with pytest.raises(PreflightError, match="checkpoint 3 in .* cannot be restored") as caught:
            fly(tiny_run(tmp_path, other), resume=True)
        assert why in caught.value.message
        assert hint in caught.value.hint
    assert saved_steps(folder) == [3]


def test_a_resume_under_other_settings_is_refused_and_keeps_all(flown, tmp_path):
    _, summary, _ = flown
    folder = tmp_path / "g1" / "run"
    shutil.copytree(summary.folder, folder)
    with pytest.raises(UsageError, match="run was started with other settings") as caught:
        fly(tiny_run(tmp_path, "batch_size=4", "keep_period=none", "num_train_steps=9"), resume=True)
    assert "batch_size is 4, was 2; keep_period is None, was 3" in caught.value.message
    assert saved_steps(folder) == [3, 5]


def test_a_resume_without_metrics_begins_them_anew(flown, tmp_path):
    _, summary, _ = flown
    folder = tmp_path / "g1" / "run"
    shutil.copytree(summary.folder, folder)
    shutil.rmtree(folder / "5")
    (folder / "metrics.jsonl").unlink()
    fly(tiny_run(tmp_path), resume=True)
    assert [r["step"] for r in records(folder)] == [4, 5]


def test_only_one_of_two_starts_gets_the_folder(tmp_path):
    create_folder(tmp_path / "run", overwrite=False)  # empty: a leftover, taken over
    create_folder(tmp_path / "run", overwrite=False)
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="was made by another process in the meantime"):
        create_folder(tmp_path / "run", overwrite=False)


class Dying:
    """A dataset that fails at its fourth sample and after."""

    def __init__(self, dataset):
        self.dataset, self.taken = dataset, 0
        self.stats = dataset.stats

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        self.taken += 1
        if self.taken > 6:
            raise DataError("the disk went away")
        return self.dataset[index]


def test_a_loader_that_fails_loses_nothing_that_was_trained(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, "wandb_enabled=false")
    dying = Dying(run.dataset())
    monkeypatch.setattr(run, "dataset", lambda: dying)
    with pytest.raises(PreflightError, match="the disk went away") as caught:
        fly(run)
    assert "Checkpoint 2 is saved; --resume goes on from it." in caught.value.hint
    assert saved_steps(tmp_path / "g1" / "run") == [2]


def test_a_damaged_checkpoint_is_named(flown, tmp_path):
    _, summary, _ = flown
    folder = tmp_path / "g1" / "run"
    shutil.copytree(summary.folder, folder)
    shutil.rmtree(folder / "5")
    (folder / "3/params/_METADATA").write_text("{")
    with pytest.raises(PreflightError, match="checkpoint 3 in .* cannot be restored"):
        fly(tiny_run(tmp_path), resume=True)


def test_a_failed_start_leaves_nothing_behind(tmp_path):
    dataset = tmp_path / "data"
    shutil.copytree(Path(EXAMPLE).parent / "data" / "g1", dataset)
    video = next(dataset.rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:50_000])
    run = tiny_run(tmp_path / "runs", f"data.root={dataset}")
    with pytest.raises(DataError, match=r"file-000\.mp4"):
        fly(run)
    assert not (tmp_path / "runs").exists()


def test_overwrite_starts_anew(tmp_path):
    run = tiny_run(tmp_path, "num_train_steps=1", "wandb_enabled=false")
    folder = run_folder(run.facts, "run")
    (folder / "7").mkdir(parents=True)
    (folder / "old.txt").write_text("old")
    summary, said = fly(run, overwrite=True)
    assert summary.checkpoints == (0,)
    assert not (folder / "old.txt").exists()
    assert said[1] == "wandb: disabled (wandb_enabled is false)"
    assert not (folder / "wandb").exists()
    assert [p.name for p in folder.parent.iterdir()] == ["run"]


def test_ema_is_logged_averaged_and_served(tmp_path):
    run = tiny_run(tmp_path, "ema_decay=0.5", "num_train_steps=2", "wandb_enabled=false")
    summary, _ = fly(run)
    assert records(summary.folder)[-1].keys() >= {"ema_distance"}
    state = params_of(summary.folder, 1, run)
    distance = np.sqrt(
        sum(
            float(np.sum(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64))))
            for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema_params), strict=True)
        )
    )
    # Without vectors, see conftest, the CPU adds up float32 one by one.
    rel = 1e-3 if "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ else 1e-4
    assert records(summary.folder)[-1]["ema_distance"] == pytest.approx(distance, rel=rel)
    assert distance > 0


def test_frozen_parameters_do_not_move(tmp_path):
    run = tiny_run(tmp_path, "freeze=['.*/img/.*']", "num_train_steps=2", "wandb_enabled=false")
    summary, _ = fly(run)
    before = jax.jit(lambda key: init_state(run, key).params)(jax.random.key(run.facts.seed))
    after = params_of(summary.folder, 1, run).params
    moved = {
        jax.tree_util.keystr(path): bool(np.any(np.asarray(a) != np.asarray(b)))
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    }
    tower = {path for path in moved if "'img'" in path}
    assert len(tower) == 23
    assert not any(moved[path] for path in tower)
    assert moved["['action_out_proj']['kernel'].value"] or any("action_out_proj" in p and moved[p] for p in moved)


def random_batch(run):
    rng = np.random.default_rng(0)

    def fill(spec):
        if spec.dtype == np.float32:
            return rng.standard_normal(spec.shape).astype(np.float32)
        return rng.integers(0, 2 if spec.dtype == bool else 200, spec.shape).astype(spec.dtype)

    return jax.tree.map(fill, run.batch_spec(run.facts.batch_size))


def test_two_devices_give_the_losses_of_one_and_the_step_compiles_once(tmp_path):
    run, losses = tiny_run(tmp_path), []
    for count in (1, 2):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("data",))
        by_sample = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        state = jax.jit(lambda key: init_state(run, key), out_shardings=replicated)(jax.random.key(0))
        step, batch = compile_step(run, mesh), jax.device_put(random_batch(run), by_sample)
        for _ in range(3):
            state, metrics = step(jax.random.key(1), state, batch)
        losses.append(float(metrics["loss"]))
        assert step._cache_size() == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(tmp_path):
    with pytest.raises(UsageError, match="batch_size 3 does not divide over 2 devices"):
        fly(tiny_run(tmp_path, "batch_size=3"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", " x", "../../up", "x\ny", "n" * 300])
def test_an_experiment_cannot_leave_its_folder(tmp_path, name):
    with pytest.raises(UsageError, match="is not a plain folder name"):
        run_folder(tiny_run(tmp_path).facts, name)


def test_what_stands_in_the_way_of_a_start_is_named(tmp_path):
    folder = tmp_path / "g1" / "run"
    with pytest.raises(UsageError, match="nothing to resume: .* does not exist"):
        refuse_folder(folder, overwrite=False, resume=True)
    with pytest.raises(UsageError, match="contradict"):
        refuse_folder(folder, overwrite=True, resume=True)
    (tmp_path / "g1" / "other" / "100").mkdir(parents=True)
    with pytest.raises(UsageError) as caught:
        refuse_folder(folder, overwrite=False, resume=True)
    assert caught.value.hint == "runs with checkpoints: other"
    folder.mkdir()
    refuse_folder(folder, overwrite=False, resume=False)  # empty: nothing is lost
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="cannot be made: File exists"):
        create_folder(tmp_path / "file" / "run", overwrite=False)


def test_a_temporary_checkpoint_is_no_checkpoint(tmp_path):
    (tmp_path / "100").mkdir()
    (tmp_path / "200.orbax-checkpoint-tmp-1").mkdir()
    (tmp_path / "wandb").mkdir()
    assert saved_steps(tmp_path) == [100]


def test_saves_keeps_and_milestones_of_the_twenty_thousand_step_run():
    facts = load_run("pi0_lighter_cup_trossen").facts
    assert save_steps(facts) == kept_steps(facts) == [5_000, 10_000, 15_000, 19_999]
    assert milestone_steps(facts) == {0, 5_000, 10_000, 15_000, 19_999}
    assert kept_steps(dataclasses.replace(facts, keep_period=None)) == [19_999]
    assert milestone_steps(dataclasses.replace(facts, milestones=(7, 20_000))) == {0, 7, 5_000, 10_000, 15_000, 19_999}
