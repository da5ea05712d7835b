"""Saves on a disk that is full for a while, and checkpoints whose files were damaged afterwards."""

import gc
import json
import shutil
import time

import jax
import numpy as np
import pytest
from small_disk import fill, make_room, small_disk
from toy_run import toy_run

from preflight.errors import PreflightError
from preflight.training import checkpoints
from preflight.training.checkpoint_files import NAME, damage, whole_steps
from preflight.training.folder import saved_steps, unfinished_saves
from preflight.training.mesh import make_mesh
from preflight.training.saves import Saves
from preflight.training.state import abstract_state, first_state, state_sharding

# What threads of a failed save say when it is over; the command line drops it, too.
pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _collected():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(1, jax.devices()[:1])


@pytest.fixture(scope="module")
def run():
    return toy_run("ema_decay=0.9", width=128)


@pytest.fixture(scope="module")
def state(run, mesh):
    return first_state(run, jax.random.key(0), state_sharding(run, mesh))


def fail_if_told(*words):
    raise AssertionError(words)


def restored(folder, step, run, mesh):
    manager = checkpoints.open_manager(folder, keep_period=None)
    try:
        return checkpoints.restore(manager, step, abstract_state(run, mesh))
    finally:
        manager.close()


def assert_same(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# What a checkpoint takes is some 500 KiB: it fails at the start, among the arrays, or among the last small files.
@pytest.mark.parametrize("left", [0, 100 << 10, 330 << 10])
def test_a_full_disk_keeps_the_older_checkpoint_and_later_saves_are_tried_again(tmp_path, run, state, mesh, left):
    with small_disk(tmp_path / "disk", 8) as disk:
        told, saved = [], []
        saves = Saves(checkpoints.open_manager(disk, keep_period=None), lambda *words: told.append(words), saved.append)
        saves.start(3, state, {"lab/norm_stats.json": b"{}"})
        saves.finish()
        assert (saved_steps(disk), told, saves.failure) == ([3], [], None)
        fill(disk, leave_bytes=left)
        goes_on = "The training goes on and will try again at the next save; checkpoint 3 is the newest that is kept"
        for attempt, step in enumerate((6, 9)):
            saves.start(step, state, {})
            saves.finish()
            assert (saved_steps(disk), unfinished_saves(disk)) == ([3], [])
            assert told[attempt] == (
                step,
                f"checkpoint {step} could not be saved: the disk of {disk} is full. {goes_on}",
                "make room, or save elsewhere: --set checkpoint_base_dir=DIR; older checkpoints are untouched",
            )
        assert_same(restored(disk, 3, run, mesh), state)
        make_room(disk)
        saves.start(12, state, {})
        saves.finish()
        assert (saved_steps(disk), saves.failure, len(told), saved) == ([12], None, 2, [3, 12])
        assert_same(restored(disk, 12, run, mesh), state)
        fill(disk, leave_bytes=left)
        saves.start(15, state, {})
        with pytest.raises(PreflightError, match="the last save failed: checkpoint 15 .* is full; checkpoint 12 is"):
            saves.close()
        assert saved_steps(disk) == [12]


def test_a_failed_save_is_told_of_before_the_next(tmp_path, state):
    with small_disk(tmp_path / "disk", 8) as disk:
        told = []
        saves = Saves(checkpoints.open_manager(disk, keep_period=None), lambda *words: told.append(words))
        fill(disk, leave_bytes=200 << 10)
        saves.start(3, state, {})
        deadline = time.monotonic() + 30
        while not told and time.monotonic() < deadline:
            saves.look()
            time.sleep(0.01)
        assert told[0][1].endswith("no checkpoint is kept so far")


@pytest.fixture(scope="module")
def kept(tmp_path_factory, state):
    """A run folder with the checkpoints 3 and 6."""
    folder = tmp_path_factory.mktemp("kept")
    saves = Saves(checkpoints.open_manager(folder, keep_period=3), fail_if_told)
    for step in (3, 6):
        saves.start(step, state, {"lab/norm_stats.json": b"{}"})
    saves.close()
    return folder


def test_a_checkpoint_lists_its_files_before_it_has_its_name(kept):
    sizes = json.loads((kept / "6" / NAME).read_text())["bytes"]
    assert {"params/_METADATA", "params/manifest.ocdbt", "assets/lab/norm_stats.json"} <= sizes.keys()
    assert sizes["assets/lab/norm_stats.json"] == 2
    assert whole_steps(kept) == [3, 6]


def harm(path, how):
    if how == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


def test_every_file_that_is_missing_or_cut_short_is_named_with_the_checkpoint_to_go_on_from(kept, tmp_path, run, mesh):
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    abstract = abstract_state(run, mesh)
    manager = checkpoints.open_manager(folder, keep_period=None)
    names = json.loads((folder / "6" / NAME).read_text())["bytes"]
    assert len(names) > 15
    for name in names:
        for how, why in (("missing", "is missing"), ("half", "bytes instead of")):
            path = folder / "6" / name
            harm(path, how)
            with pytest.raises(PreflightError, match="checkpoint 6 in .* cannot be restored") as caught:
                checkpoints.restore(manager, 6, abstract)
            assert f"{path} " in caught.value.message
            assert why in caught.value.message
            assert f"go on from checkpoint 3, the newest whole one before it: mv {folder}/6 {folder}/6.damaged" in (
                caught.value.hint
            )
            shutil.copy(kept / "6" / name, path)
    assert_same(checkpoints.restore(manager, 6, abstract), checkpoints.restore(manager, 3, abstract))
    manager.close()


def test_without_a_list_orbax_tells_and_the_file_is_named(kept, tmp_path, run, mesh):
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    (folder / "6" / NAME).unlink()
    assert damage(folder / "6") is None
    shutil.rmtree(folder / "3" / "params")
    largest = max((folder / "6/params").rglob("*"), key=lambda path: path.stat().st_size)
    harm(largest, "half")
    with pytest.raises(PreflightError, match="checkpoint 6 in .* cannot be restored") as caught:
        restored(folder, 6, run, mesh)
    # Which of the arrays in the file it meets first is left to chance.
    assert f'in OCDBT database at local file "{folder}/6/params/"' in caught.value.message
    assert caught.value.hint.startswith("there is no older checkpoint that is whole")


def test_a_checkpoint_of_another_config_names_leaf_and_setting(kept, run, mesh):
    manager = checkpoints.open_manager(kept, keep_period=None)
    for others, message, hint in (
        (
            ["ema_decay=none"],
            "train_state has params/bias [32], the config does not",
            "a moving average: set ema_decay",
        ),
        (
            ["ema_decay=0.9", "gradient_accumulation_steps=2"],
            "train_state has opt_state/1/0/count [], the config does not",
            "set gradient_accumulation_steps to 1",
        ),
        (
            ["ema_decay=0.9", "freeze=['loop']"],
            "train_state has opt_state/1/0/mu/loop [2, 128, 128], the config does not",
            "trains other parameters (freeze, LoRA variants)",
        ),
    ):
        with pytest.raises(PreflightError) as caught:
            checkpoints.restore(manager, 6, abstract_state(toy_run(*others, width=128), mesh))
        assert caught.value.message == f"checkpoint 6 in {kept} cannot be restored: {message}"
        assert hint in caught.value.hint
    with pytest.raises(
        PreflightError, match=r"params/first is \[32, 128\] in the checkpoint, \[32, 64\] in the config"
    ):
        checkpoints.restore(manager, 6, abstract_state(toy_run("ema_decay=0.9", width=64), mesh))
    manager.close()


def test_what_an_unfinished_save_left_is_deleted_and_never_restored(kept, tmp_path, state, run, mesh):
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    shutil.copytree(folder / "6" / "params", folder / "9.orbax-checkpoint-tmp-77" / "params")
    assert saved_steps(folder) == [3, 6]
    assert len(unfinished_saves(folder)) == 1
    saves = Saves(checkpoints.open_manager(folder, keep_period=None), fail_if_told)
    saves.start(9, state, {})
    saves.close()
    assert unfinished_saves(folder) == []
    assert damage(folder / "9") is None
    assert_same(restored(folder, 9, run, mesh), state)
