"""`data.values` with recordings in which one thing is odd, and with many in which nothing is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from healthy import context, spoken
from test_checks_data import V21, V30, altered, edit_info, replace_column

from checks import data, data_values
from preflight.checklist import run_checks

FILE = "data/chunk-000/file-000.parquet"


@pytest.fixture
def v30(tmp_path):
    return Path(shutil.copytree(V30, tmp_path / "g1"))


def said(root, *assignments):
    """What the check says, beside the other checks of the dataset, which must be silent."""
    others = [check for check in data.CHECKS if check.id != data_values.CHECK.id]
    checked = context(f"data.root={root}", *assignments)
    results = {r.check.id: r for r in run_checks([*others, data_values.CHECK], checked, max_parallel=1)}
    assert spoken(results) <= {"data.values"}, {i: results[i].outcome.summary for i in spoken(results)}
    return results["data.values"].outcome


def change(root, key, dim, values):
    """Sets one dimension of the first file's frames; `values` gives the new from the old, as arrays."""

    def edit(rows):
        column = values(np.array([row[dim] for row in rows]))
        for row, value in zip(rows, column.tolist(), strict=True):
            row[dim] = value

    replace_column(root, key, edit)


def at(frames, value):
    def edit(column):
        column[frames] = value
        return column

    return edit


def rename(root, key, dim, name):
    edit_info(root, lambda info: info["features"][key]["names"][0].__setitem__(dim, name))


@pytest.mark.parametrize("root", [V30, V21])
def test_a_real_recording_is_silent(root):
    outcome = said(root)
    assert outcome.status == "pass"
    assert outcome.summary == ("52 dimensions of observation.state and action in all 498 frames: no jump, no copy")
    assert outcome.measured == {
        "frames": 498,
        "columns": ["observation.state", "action"],
        "constant": [],
        "jumps": 0,
        "equal": [],
    }


def test_the_demo_is_silent():
    checked = context("data.root=none", "data.state=observation.state", "data.actions=action")
    assert data_values.CHECK.run(checked).status == "pass"


def test_without_a_dataset_it_says_so():
    outcome = data_values.CHECK.run(altered(context(), source=lambda: None))
    assert outcome.summary == "samples are made up without a dataset: no value was recorded"


def test_a_glitch_is_named_with_its_frame(v30):
    change(v30, "observation.state", 9, at(300, 1.2))
    outcome = said(v30)
    assert outcome.status == "warn"
    assert outcome.measured["jumps"] == 2  # there and back
    first, second = outcome.evidence
    for line, frame in ((first, 79), (second, 80)):
        assert f"at frame {frame} of episode 1 ({v30 / FILE})" in line or f"at frame {159 - frame} of" in line
    assert outcome.summary.startswith("observation.state[9] (kRightShoulderYaw) jumps from ")
    assert "times as far as it goes in a frame otherwise; and 1 more finding(s)" in outcome.summary


def test_an_angle_that_wraps_is_named(v30):
    change(v30, "observation.state", 9, lambda column: np.linspace(4, 8, 498) % (2 * np.pi))
    outcome = said(v30)
    assert outcome.status == "warn"
    assert "an angle that wraps" in outcome.hint.text
    assert "observation.state[9] (kRightShoulderYaw) jumps from " in outcome.summary


def test_where_an_episode_begins_no_step_is_taken(v30):
    change(v30, "observation.state", 9, lambda column: column + np.where(np.arange(498) < 221, 0, 1.5))
    assert said(v30).status == "pass"


def test_a_fast_motion_is_no_jump(v30):
    def reach(column):
        noise = np.random.default_rng(0).standard_normal(len(column)) * 1e-4
        return np.interp(np.arange(len(column)), [0, 300, 304, 497], [0, 0, 1, 1]) + noise

    change(v30, "observation.state", 9, reach)
    assert said(v30).status == "pass"


@pytest.mark.parametrize("name", ["kRightShoulderYaw", "right_gripper"])
def test_what_opens_and_closes_at_once_is_no_jump(v30, name):
    noise = np.random.default_rng(0).standard_normal(498) * 1e-4
    closed = (np.arange(498) // 60) % 2
    for key in ("observation.state", "action"):
        rename(v30, key, 9, name)
        change(v30, key, 9, lambda column: closed + noise)
    assert said(v30).status == "pass"


def test_actions_that_are_the_state_are_named(v30):
    states = []
    replace_column(v30, "observation.state", states.extend)
    replace_column(v30, "action", lambda rows: rows.__setitem__(slice(None), states))
    outcome = said(v30)
    assert outcome.status == "warn"
    assert outcome.summary == (
        "action is equal to observation.state in every frame: a policy that learns it stands still"
    )
    assert outcome.measured["equal"] == [["observation.state", "action"]]
    for frame in (220, 497):  # one of each episode
        replace_column(v30, "action", lambda rows, frame=frame: rows[frame].__setitem__(0, rows[frame][0] + 0.01))
    assert said(v30).status == "pass"


@pytest.mark.parametrize("key", ["observation.state", "action"])
def test_a_column_that_is_frozen_in_one_episode_is_named(v30, key):
    replace_column(v30, key, lambda rows: rows.__setitem__(slice(221, None), [rows[221]] * 277))
    outcome = said(v30)
    assert outcome.status == "warn"
    assert outcome.evidence == (
        f"none of the 26 dimensions of {key} moves in episode 1 ({v30 / FILE}), though they do in others",
    )
    # A dimension that moves is enough.
    change(v30, key, 4, lambda column: np.sin(np.arange(498) / 40))
    assert said(v30).status == "pass"


def test_actions_that_are_the_state_in_one_episode_are_named(v30):
    states = []
    replace_column(v30, "observation.state", states.extend)
    replace_column(v30, "action", lambda rows: rows.__setitem__(slice(221, None), states[221:]))
    outcome = said(v30)
    assert outcome.status == "warn"
    assert len(outcome.evidence) == 1
    assert outcome.summary == (
        f"action is equal to observation.state in every frame of episode 1 ({v30 / FILE}), but not in others: a policy "
        "that learns it stands still"
    )
    assert outcome.measured["equal"] == []
    replace_column(v30, "action", lambda rows: rows[497].__setitem__(0, rows[497][0] + 0.01))
    assert said(v30).status == "pass"


def test_a_hand_alone_may_rest_for_an_episode(v30):
    for dim in range(26):
        rename(v30, "action", dim, f"finger{dim}")
    replace_column(v30, "action", lambda rows: rows.__setitem__(slice(221, None), [rows[221]] * 277))
    assert said(v30).status == "pass"


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint16"])
def test_columns_of_whole_numbers_are_looked_at(v30, dtype):
    path = v30 / FILE
    table = pq.read_table(path)
    for key in ("observation.state", "action"):
        ticks = np.rint(np.array(table[key].to_pylist()) * 2000 + 30000).astype(dtype)
        table = table.set_column(table.schema.get_field_index(key), key, pa.array(list(ticks)))
        edit_info(v30, lambda info, key=key: info["features"][key].update(dtype=dtype))
    pq.write_table(table, path)
    outcome = said(v30)
    assert (outcome.status, outcome.measured["columns"]) == ("pass", ["observation.state", "action"])
    assert "task_index" in context(f"data.root={v30}").run.columns()
    change(v30, "observation.state", 9, at(300, 33000))
    outcome = said(v30)
    assert outcome.status == "warn"
    assert "observation.state[9] (kRightShoulderYaw) jumps from " in outcome.summary


def test_actions_that_never_move_are_named(v30):
    replace_column(v30, "action", lambda rows: rows.__setitem__(slice(None), [[0.0] * 26] * 498))
    outcome = said(v30)
    assert outcome.summary.startswith("none of the 26 dimensions of action ever moves")


def test_dimensions_that_never_move_are_said_and_no_fault(v30):
    for key in ("observation.state", "action"):
        change(v30, key, 2, at(slice(None), 0.5))
    outcome = said(v30)
    assert outcome.status == "pass"
    assert outcome.summary.endswith(
        "; 2 never move: observation.state[2] (kLeftShoulderYaw), action[2] (kLeftShoulderYaw)"
    )


def test_a_hand_whose_command_was_not_recorded_is_named(v30):
    hand = json.loads((v30 / "meta" / "info.json").read_text())["features"]["action"]["names"][0][18]
    change(v30, "action", 18, at(slice(None), 0.5))
    assert said(v30).status == "pass"  # it hardly moves itself
    change(v30, "observation.state", 18, lambda column: np.sin(np.arange(498) / 40))
    outcome = said(v30)
    assert outcome.status == "warn"
    assert outcome.summary == (
        f"action[18] ({hand}) never moves, though observation.state[18] ({hand}) does: the command was not recorded"
    )


def test_a_gripper_in_two_units_is_named(v30):
    both = np.sin(np.arange(498) / 20) / 2 + 0.5
    for key in ("observation.state", "action"):
        rename(v30, key, 18, "left_gripper")
        change(v30, key, 18, lambda column: both)
    assert said(v30).status == "pass"
    change(v30, "action", 18, lambda column: column * np.where(np.arange(498) < 221, 1, 100))
    outcome = said(v30)
    assert outcome.summary == (
        "action[18] (left_gripper) goes from 0 to 1 in 1 episode(s) and up to 100 in 1, the first of them episode 1"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left_to_data_norm_stats(v30, value):
    change(v30, "observation.state", 9, at(300, value))
    outcome = data_values.CHECK.run(context(f"data.root={v30}"))
    assert outcome.status == "pass"


def test_more_frames_than_are_sampled_give_the_same(v30, monkeypatch):
    change(v30, "observation.state", 9, at(300, 1.2))
    all_of_them = said(v30)
    monkeypatch.setattr("preflight.data.steps._SAMPLE", 300)
    assert said(v30).measured == all_of_them.measured
