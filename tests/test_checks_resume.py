"""`storage.resume` on run folders that preflight's own checkpoints made."""

import shutil

import jax.numpy as jnp
import pytest
from flax import nnx
from healthy import SLOW, context, spoken

from checks import CHECKLIST
from checks.storage_resume import CHECK
from preflight.checklist import run_checks
from preflight.training import checkpoints
from preflight.training.record import write_record
from preflight.training.state import TrainState


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder with the checkpoints 415 and 830, as an interrupted training leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    folder.mkdir()
    manager = checkpoints.open_manager(folder, keep_period=415)
    state = TrainState(
        step=jnp.int32(1), params=nnx.State({"w": jnp.ones((2, 2))}), opt_state={"mu": jnp.ones(2)}, ema_params=None
    )
    for step in (415, 830):
        checkpoints.save(manager, step, state, {}, pending=None)
        checkpoints.finish(manager, step)
    manager.close()
    write_record(folder, context().run.facts, 498)
    (folder / "wandb_id.txt").write_text("3x8ab2\n")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "first")
    return tmp_path / "first"


def resumed(folder, *assignments, **changes):
    return context(*assignments, folder=folder, resume=True, **changes)


def results_of(checked):
    without = {*SLOW, "storage.write", CHECK.id}
    checks = [*(check for check in CHECKLIST if check.id not in without), CHECK]
    return {result.check.id: result for result in run_checks(checks, checked, max_parallel=1)}


def the_one_that_speaks(checked):
    results = results_of(checked)
    assert spoken(results) == {CHECK.id}, {i: results[i].outcome.summary for i in spoken(results)}
    return results[CHECK.id].outcome


def test_a_start_that_resumes_nothing_is_skipped(tmp_path):
    assert CHECK.run(context()).status == "skip"
    assert CHECK.run(context(folder=tmp_path / "new")).status == "skip"


def test_a_folder_without_checkpoints_is_told_by_the_check_of_the_folder(tmp_path):
    results = results_of(resumed(tmp_path / "none"))
    assert spoken(results) == {"storage.checkpoint-dir"}
    assert results[CHECK.id].outcome.summary == "blocked by storage.checkpoint-dir"
    assert CHECK.run(resumed(tmp_path / "none")).status == "skip"


def test_a_healthy_resume_is_silent(folder):
    results = results_of(resumed(folder))
    assert spoken(results) == set()
    assert results[CHECK.id].outcome.summary == (
        "first goes on at step 831 of 1,245: checkpoint 830 has params and train_state, the order of the data, its "
        "wandb run and the record of its settings are kept"
    )
    assert results[CHECK.id].outcome.measured["checkpoints"] == [415, 830]


def test_a_missing_wandb_id_is_warned_of_where_wandb_is_on(folder):
    (folder / "wandb_id.txt").unlink()
    outcome = the_one_that_speaks(resumed(folder))
    assert outcome.status == "warn"
    assert outcome.summary == (
        f"{folder / 'wandb_id.txt'} is missing: the metrics go to another wandb run from here on"
    )
    for off in (
        resumed(folder, "wandb_enabled=false"),
        resumed(folder, probes={"environ": {"WANDB_MODE": "disabled"}}),
    ):
        outcome = CHECK.run(off)
        assert outcome.status == "pass"
        assert "wandb" not in outcome.summary
    (folder / "wandb_id.txt").write_text("\n")
    assert "is empty" in CHECK.run(resumed(folder)).summary


def test_a_folder_that_openpi_made_is_warned_of(folder):
    (folder / "config.json").unlink()
    outcome = the_one_that_speaks(resumed(folder))
    assert outcome.status == "warn"
    assert outcome.summary.startswith("first has no config.json, so it was not made by preflight (openpi makes none): ")
    assert "the order of the data starts over" in outcome.summary
    (folder / "config.json").write_text("{")
    assert "has a config.json that cannot be read (JSONDecodeError)" in CHECK.run(resumed(folder)).summary


def test_a_run_that_has_made_all_its_steps_is_refused(folder):
    outcome = the_one_that_speaks(
        resumed(folder, "num_train_steps=831", "lr_schedule.decay_steps=831", "keep_period=415")
    )
    assert outcome.status == "fail"
    assert outcome.summary == "nothing is left to train: first has made 831 of 831 steps"
    assert outcome.hint.commands[0].endswith("--exp-name first --resume --set num_train_steps=1246")
    assert CHECK.run(resumed(folder, "num_train_steps=832")).status == "pass"


@pytest.mark.parametrize("item", ["params", "train_state"])
def test_an_incomplete_checkpoint_is_named_with_the_one_before_it(folder, item):
    shutil.rmtree(folder / "830" / item)
    outcome = the_one_that_speaks(resumed(folder))
    assert outcome.status == "fail"
    assert outcome.summary == (
        f"checkpoint 830 in {folder} is damaged: {folder}/830/{item}/_METADATA is missing; the newest whole one before "
        "it is 415"
    )
    assert str(folder / "830") in outcome.hint.text
    shutil.rmtree(folder / "415")
    assert CHECK.run(resumed(folder)).summary.endswith("there is no whole one before it")


def test_a_file_that_was_cut_short_is_named(folder):
    path = folder / "830" / "params" / "manifest.ocdbt"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    outcome = the_one_that_speaks(resumed(folder))
    assert f"{path} has {size - 1} bytes instead of {size};" in outcome.summary


def test_a_save_that_was_cut_short_is_named(folder):
    (folder / "1244.orbax-checkpoint-tmp-3").mkdir()
    outcome = the_one_that_speaks(resumed(folder))
    assert outcome.status == "warn"
    assert outcome.summary == (
        "first holds the remains of a save that did not finish: 1244.orbax-checkpoint-tmp-3; it goes on at step 831"
    )


def test_several_traps_are_told_together(folder):
    (folder / "config.json").unlink()
    (folder / "wandb_id.txt").unlink()
    outcome = CHECK.run(resumed(folder))
    assert outcome.summary.endswith("(and 1 more)")
    assert len(outcome.evidence) == 1
    assert "wandb_id.txt is missing" in outcome.evidence[0]
