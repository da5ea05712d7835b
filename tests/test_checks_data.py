"""`data.version`, `data.features` and `data.prompts`: silent on real data, and alone with the fault that is theirs."""

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from healthy import EXAMPLE, context, spoken

from checks import data, data_features, data_norm_stats, data_prompts, data_version
from preflight.checklist import run_checks
from preflight.errors import NotCovered
from preflight.runs.protocol import Prompt

V30 = Path(EXAMPLE).parent / "data" / "g1"
V21 = Path(__file__).parent / "data" / "g1_v21"
CAMERA = "observation.images.cam_high"
NEW = (data_version.CHECK, data_features.CHECK, data_prompts.CHECK, data_norm_stats.CHECK)
OPENPIS = {"formats": ("v2.0", "v2.1"), "stack": "openpi"}


def run_data(checked):
    return {result.check.id: result for result in run_checks(data.CHECKS, checked, max_parallel=1)}


def the_one_that_speaks(checked, id_, status="fail"):
    results = run_data(checked)
    assert spoken(results) == {id_}, {i: results[i].outcome.summary for i in spoken(results)}
    assert results[id_].status == status
    return results[id_].outcome


def altered(checked, facts=None, **answers):
    """The same context, its run with other facts and other answers."""
    checked.run.facts = dataclasses.replace(checked.run.facts, **(facts or {}))
    for name, answer in answers.items():
        setattr(checked.run, name, answer)
    return checked


@pytest.fixture
def v30(tmp_path):
    return Path(shutil.copytree(V30, tmp_path / "g1"))


@pytest.fixture
def v21(tmp_path):
    return Path(shutil.copytree(V21, tmp_path / "g1"))


def edit_info(root, change):
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def replace_column(root, key, change):
    """Rewrites one column of the first parquet file; `change` edits its values, a list with one entry a frame."""
    path = sorted((root / "data").rglob("*.parquet"))[0]
    table = pq.read_table(path)
    values = table[key].to_pylist()
    change(values)
    field = table.schema.field(key)
    pq.write_table(table.set_column(table.schema.get_field_index(key), field, pa.array(values, field.type)), path)


@pytest.mark.parametrize("root", [V30, V21])
@pytest.mark.parametrize("assignments", [(), ("model.pi05=true", "data.delta_actions=[7, -6, 7, -6]")])
def test_real_data_are_silent(root, assignments):
    results = run_data(context(f"data.root={root}", *assignments))
    assert {result.status for result in results.values()} == {"pass"}
    version = "v3.0" if root == V30 else "v2.1"
    assert results["data.version"].outcome.summary == f"format {version}, which the native stack's reader opens"
    assert results["data.features"].outcome.summary.startswith("5 of the dataset's 8 features are asked for and there")
    tokens = "142 of 200" if assignments else "15 of 48"
    assert results["data.prompts"].outcome.summary == (
        f"1 task(s), the longest takes {tokens} tokens: 'Pick up the yellow bottle on the table.'"
    )


def test_a_format_that_the_runs_reader_does_not_open_trips_data_version_alone():
    checked = altered(context(), OPENPIS)
    results = run_data(checked)
    assert spoken(results) == {"data.version"}
    outcome = results["data.version"].outcome
    assert outcome.summary == "the dataset is in format v3.0; the openpi stack's reader opens v2.0 and v2.1"
    assert (outcome.measured, outcome.expected) == (
        {"codebase_version": "v3.0"},
        {"codebase_version": ["v2.0", "v2.1"]},
    )
    assert "asks the Hub" in outcome.evidence[1]
    assert outcome.hint.text.startswith("convert a copy of it to v2.1; or train it with the native stack")
    assert "v30_to_v21" in outcome.hint.url
    assert results["data.present"].status == "pass"
    for later in ("data.features", "data.prompts", "data.norm-stats", "data.sample"):
        assert results[later].outcome.summary == "blocked by data.version"


def test_the_same_data_in_the_older_format_are_silent_under_it():
    assert spoken(run_data(altered(context(f"data.root={V21}"), OPENPIS))) == set()


def test_what_no_stack_reads_is_left_to_data_present(v30):
    edit_info(v30, lambda info: info.update(codebase_version="v1.6"))
    results = run_data(context(f"data.root={v30}"))
    assert spoken(results) == {"data.present"}
    assert results["data.version"].outcome.summary.startswith("codebase_version is 'v1.6'")
    shutil.rmtree(v30)
    results = run_data(context(f"data.root={v30}"))
    assert spoken(results) == {"data.present"}
    assert results["data.version"].status == "skip"


def test_without_a_dataset_they_say_so_and_block_nothing():
    for check in NEW:
        outcome = check.run(altered(context(), source=lambda: None))
        assert outcome.status == "pass"
        assert outcome.summary.startswith("samples are made up"), check.id


def test_samples_that_are_no_lerobot_dataset_are_skipped():
    def source():
        raise NotCovered("RLDS is not covered")

    results = run_checks(NEW[:1], altered(context(), source=source))
    assert [(result.status, result.outcome.summary) for result in results] == [("skip", "RLDS is not covered")]


def test_a_key_that_the_dataset_lacks_trips_data_features_alone_with_the_nearest():
    outcome = the_one_that_speaks(context("data.actions=actions"), "data.features")
    assert outcome.summary == "the run asks for 'actions', which the dataset does not have"
    assert outcome.hint.text.startswith("Did you mean action? The dataset has: observation.state, action, ")
    outcome = the_one_that_speaks(context("data.cameras.base_0_rgb=cam_high"), "data.features")
    assert outcome.evidence[0].startswith(f"cam_high: Did you mean {CAMERA}?")
    outcome = the_one_that_speaks(context("data.cameras.base_0_rgb=action"), "data.features")
    assert outcome.summary == "'action' is not one of the dataset's cameras"
    assert outcome.hint.text == f"Its cameras: {CAMERA}"


def test_a_dataset_without_tasks_is_offered_one_prompt_for_all(v30):
    path = sorted((v30 / "data").rglob("*.parquet"))[0]
    pq.write_table(pq.read_table(path).drop_columns(["task_index"]), path)
    edit_info(v30, lambda info: info["features"].pop("task_index"))
    outcome = the_one_that_speaks(context(f"data.root={v30}"), "data.features")
    assert outcome.summary == "the dataset has no column task_index, by which frames are given their task's text"
    assert "--set 'data.prompt=" in outcome.hint.commands[0]
    assert spoken(run_data(context(f"data.root={v30}", "data.prompt=put the lighter in the cup"))) == set()


def with_a_second_camera(root):
    shutil.copytree(root / "videos" / "chunk-000" / CAMERA, root / "videos" / "chunk-000" / "observation.images.wrist")

    def add(info):
        info["features"]["observation.images.wrist"] = info["features"][CAMERA]
        info["total_videos"] *= 2

    edit_info(root, add)


def test_cameras_that_are_decoded_for_nothing_trip_data_features_alone(v21):
    with_a_second_camera(v21)
    results = run_data(context(f"data.root={v21}"))
    assert spoken(results) == set()
    assert results["data.features"].outcome.summary.endswith("; not used and not decoded: observation.images.wrist")
    checked = altered(context(f"data.root={v21}"), {"decodes_all_cameras": True})
    outcome = the_one_that_speaks(checked, "data.features", "warn")
    assert outcome.summary == (
        "observation.images.wrist: decoded for every sample and never seen by the model, 50% of the pixels that are "
        "decoded"
    )
    assert outcome.measured["unused_pixel_share"] == 0.5
    assert outcome.evidence == ("observation.images.wrist: 480x640x3",)


def test_a_prompt_that_is_cut_trips_data_prompts_alone():
    outcome = the_one_that_speaks(context("model.max_token_len=8"), "data.prompts", "warn")
    assert outcome.summary == (
        "the prompt of task 0, 'Pick up the yellow bottle on the table.', takes 15 tokens and the model reads 8: "
        "it is cut"
    )
    assert "--set model.max_token_len=15" in outcome.hint.commands[0]
    outcome = the_one_that_speaks(context("model.pi05=true", "model.max_token_len=140"), "data.prompts", "warn")
    assert "takes 142 tokens and the model reads 140" in outcome.summary


def test_a_state_without_room_in_the_prompt_trips_data_prompts_alone():
    outcome = the_one_that_speaks(context("model.pi05=true", "model.max_token_len=120"), "data.prompts")
    assert outcome.summary.startswith("the prompt's 120 tokens have no room for the state's 26 dimensions")
    assert "at least 142" in outcome.hint.text


def test_the_longest_of_several_prompts_is_named():
    prompts = {0: Prompt(text="wave", num_tokens=3), 4: Prompt(text="x" * 90, num_tokens=99)}
    checked = altered(context(), prompts=lambda: prompts)
    assert data_prompts.CHECK.run(checked).status == "pass"  # no frame is of task 4
    checked = altered(context(), prompts=lambda: {0: prompts[4]})
    outcome = data_prompts.CHECK.run(checked)
    assert outcome.summary.startswith(f"the prompt of task 0, '{'x' * 57}…', takes 99 tokens and the model reads 48")


def test_frames_of_an_unknown_task_trip_data_prompts_alone(v30):
    replace_column(v30, "task_index", lambda values: values.__setitem__(-1, 4))
    outcome = the_one_that_speaks(context(f"data.root={v30}"), "data.prompts")
    assert outcome.summary == "frames have task_index 4, which none of the dataset's 1 task(s) has"
    assert outcome.measured["gaps"] == [4]
    assert outcome.hint.text == "repair the dataset's meta/tasks file, or set data.prompt for all frames"
    assert spoken(run_data(context(f"data.root={v30}", "data.prompt=wave"))) == set()


def test_a_missing_or_empty_prompt_is_said():
    checked = altered(context(), prompts=lambda: {0: Prompt(text=None, num_tokens=0)})
    outcome = the_one_that_speaks(checked, "data.prompts")
    assert outcome.summary == (
        "Prompt is required: the model is told nothing with task 0 ('Pick up the yellow bottle on the table.')"
    )
    assert "prompt_from_task=True" in outcome.hint.text
    checked = altered(context(), prompts=lambda: {0: Prompt(text=" ", num_tokens=2)})
    assert "is empty: the model learns to act" in the_one_that_speaks(checked, "data.prompts", "warn").summary


def test_a_task_that_is_listed_without_text_is_empty_and_no_gap(v21):
    (v21 / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": ""}\n')
    checked = altered(context(f"data.root={v21}"), prompts=lambda: {0: Prompt(text="", num_tokens=2)})
    assert data_prompts.CHECK.run(checked).status == "warn"
    (v21 / "meta" / "tasks.jsonl").write_text('{"task_index": 3, "task": "wave"}\n')
    assert data_prompts.CHECK.run(checked).status == "fail"
