"""`data.norm-stats` with statistics that are missing, of other data, or blow a dimension up."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from healthy import context
from test_checks_data import V21, V30, altered, replace_column, run_data, spoken, the_one_that_speaks

from checks import data_norm_stats
from preflight.data.normalize import NormStats, save
from preflight.runs.protocol import Statistics

DELTA = "data.delta_actions=[7, -6, 7, -6]"


@pytest.fixture
def v30(tmp_path):
    return Path(shutil.copytree(V30, tmp_path / "g1"))


def own_statistics(*assignments):
    return context(*assignments).run.statistics().stats


def written(folder, stats):
    path = folder / "norm_stats.json"
    save(stats, path)
    return f"data.norm_stats={path}"


def changed(stats, name, **fields):
    return {**stats, name: dataclasses.replace(stats[name], **fields)}


def at(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def given(stats, norm="zscore", path=Path("/assets/norm_stats.json"), **changes):
    """A run whose reader answers with these statistics, as a stack other than ours may."""
    statistics = Statistics(norm=norm, model_norm=None, path=path, stats=stats, command="compute them", **changes)
    return altered(context(), statistics=lambda: statistics)


def said(checked):
    return data_norm_stats.CHECK.run(checked)


@pytest.mark.parametrize("norm", ["zscore", "quantile"])
@pytest.mark.parametrize("root", [V30, V21])
@pytest.mark.parametrize("delta", [DELTA, "data.delta_actions=[]"])
def test_statistics_of_the_data_are_silent(tmp_path, root, norm, delta):
    same = (f"data.root={root}", f"data.norm={norm}", delta)
    assert spoken(run_data(context(*same))) == set()
    results = run_data(context(*same, written(tmp_path, own_statistics(*same))))
    assert spoken(results) == set()
    outcome = results["data.norm-stats"].outcome
    assert outcome.summary.startswith(f"by {norm}, all 498 frames become state -")
    assert outcome.measured["frames_looked_at"] == 498
    assert outcome.measured["largest_share_far_out"] <= (0.02 if norm == "quantile" else 0.0)


@pytest.mark.parametrize("norm", ["zscore", "quantile"])
@pytest.mark.parametrize("frames", [30, 100])
def test_a_sample_of_the_frames_is_enough_to_be_silent(tmp_path, monkeypatch, norm, frames):
    monkeypatch.setattr(data_norm_stats, "_FRAMES", frames)
    same = (f"data.norm={norm}", DELTA)
    outcome = said(context(*same, written(tmp_path, own_statistics(*same))))
    assert outcome.status == "pass"
    assert f"{frames} of 498 frames, spread evenly, become" in outcome.summary


def test_a_missing_file_trips_it_alone(tmp_path):
    path = tmp_path / "norm_stats.json"
    outcome = the_one_that_speaks(context(f"data.norm_stats={path}"), "data.norm-stats")
    assert outcome.summary == f"the normalisation statistics are missing: {path} does not exist"
    assert outcome.hint.commands[0].startswith("preflight norm-stats ")
    assert outcome.hint.commands[0].endswith("--write")
    assert "--set data.norm_stats=none" in outcome.hint.commands[1]


def test_a_file_in_another_place_is_named_with_what_mends_it():
    path, found = Path("/a s/trossen/norm_stats.json"), Path("/a s/user/cup/norm_stats.json")
    checked = given(None, path=path, elsewhere=(found,))
    checked.run.facts.settings["data.repo_id"] = "user/cup"
    outcome = said(checked)
    assert outcome.status == "fail"
    assert outcome.summary == (
        f"the normalisation statistics are not where the run looks: {path} does not exist, they are in {found}"
    )
    assert "set the config's asset_id to 'user/cup'" in outcome.hint.text
    assert outcome.hint.commands == (
        f"mkdir -p '/a s/trossen' && cp '{found}' '{path}'",
        "compute them",
    )
    elsewhere = given(None, path=path, elsewhere=(Path("/b/user/cup/norm_stats.json"),))
    elsewhere.run.facts.settings["data.repo_id"] = "user/cup"
    assert "asset_id" not in said(elsewhere).hint.text


def test_a_file_that_would_be_fetched_is_no_pass():
    outcome = said(given(None, remote="gs://openpi-assets/checkpoints/pi0_base/assets/trossen"))
    assert outcome.status == "fail"
    assert "openpi would fetch them from gs://openpi-assets" in outcome.summary


def test_statistics_of_too_few_dimensions_trip_it_alone(tmp_path):
    stats = own_statistics()
    short = NormStats(**{k: v[:25] for k, v in dataclasses.asdict(stats["state"]).items()})
    outcome = said(given({**stats, "state": short}))
    assert (outcome.status, outcome.summary) == ("fail", "the statistics of state have 25 dimensions, the data 26")
    outcome = the_one_that_speaks(context(written(tmp_path, {**stats, "state": short})), "data.norm-stats")
    assert "the statistics of 'state' have 25 dimensions, the dataset's state has 26" in outcome.summary


def test_statistics_of_more_dimensions_are_no_fault_if_the_rest_is_padding(tmp_path):
    stats = own_statistics()
    padded = NormStats(**{k: np.pad(v, (0, 6)) for k, v in dataclasses.asdict(stats["state"]).items()})
    assert spoken(run_data(context(written(tmp_path, {**stats, "state": padded})))) == set()
    assert said(given({**stats, "state": padded})).status == "pass"
    of_another = dataclasses.replace(padded, std=np.where(padded.std == 0, 1.0, padded.std))
    outcome = said(given({**stats, "state": of_another}))
    assert outcome.status == "warn"
    assert outcome.summary.startswith("the statistics of state have 32 dimensions, the data 26: the first 26 are taken")
    # Our own reader refuses what openpi slices.
    the_one_that_speaks(context(written(tmp_path, {**stats, "state": of_another})), "data.norm-stats")


def test_a_file_without_quantiles_trips_it_alone(tmp_path):
    setting = written(tmp_path, own_statistics())
    path = tmp_path / "norm_stats.json"
    raw = json.loads(path.read_text())
    for entry in raw["norm_stats"].values():
        del entry["q01"], entry["q99"]
    path.write_text(json.dumps(raw))
    outcome = the_one_that_speaks(context(setting, "data.norm=quantile"), "data.norm-stats")
    assert outcome.summary == "the statistics of state have no q01 and q99, which quantile normalisation needs"
    assert spoken(run_data(context(setting, "data.norm=zscore"))) == set()


def test_statistics_that_are_not_finite_trip_it_alone(tmp_path):
    stats = own_statistics()
    stats = changed(stats, "actions", std=at(stats["actions"].std, 3, np.nan))
    outcome = the_one_that_speaks(context(written(tmp_path, stats)), "data.norm-stats")
    assert outcome.summary == "the std of actions[3] (kLeftElbow) is nan"


@pytest.mark.parametrize("frames", [4096, 2])  # looked at, or none of those that are
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_in_the_data_trips_it_alone(v30, tmp_path, monkeypatch, frames, value):
    setting = written(tmp_path, own_statistics())
    monkeypatch.setattr(data_norm_stats, "_FRAMES", frames)
    replace_column(v30, "observation.state", lambda values: values[230].__setitem__(3, value))
    for settings in ((), (setting,)):
        outcome = the_one_that_speaks(context(f"data.root={v30}", *settings), "data.norm-stats")
        path = v30 / "data" / "chunk-000" / "file-000.parquet"
        assert outcome.summary == (
            f"state[3] (kLeftElbow) is NaN or inf in 1 of {min(498, frames + 1)} frames, the first is frame 9 of "
            f"episode 1 ({path})"
        )
        assert len(outcome.evidence) == 1


def test_a_nan_among_the_actions_is_one_frames_and_not_that_of_all_chunks_with_it(v30):
    replace_column(v30, "action", lambda values: values[100].__setitem__(3, float("nan")))
    outcome = the_one_that_speaks(context(f"data.root={v30}"), "data.norm-stats")
    assert outcome.summary.startswith(
        "actions[3] (kLeftElbow) is NaN or inf in 1 of 498 frames, the first is frame 100"
    )


def test_a_dimension_with_quantiles_that_nearly_coincide_trips_it_alone(tmp_path):
    """The numbers of openpi#814."""
    stats = own_statistics("data.norm=quantile")
    actions = stats["actions"]
    narrow = changed(stats, "actions", q01=at(actions.q01, 6, 1.5686), q99=at(actions.q99, 6, 1.5696))
    checked = context(written(tmp_path, narrow), "data.norm=quantile")
    outcome = the_one_that_speaks(checked, "data.norm-stats")
    values = checked.run.before_normalisation(np.arange(498))["actions"][..., 6]
    low = (values.min() - 1.5686) / (0.001 + 1e-6) * 2 - 1
    assert low < -1000
    assert outcome.summary == (
        f"actions[6] (kLeftWristYaw) normalises to {low:,.0f}: q01 1.5686 and q99 1.5696 are 0.001 apart, the data go "
        f"from {values.min():.4g} to {values.max():.4g}"
    )
    assert outcome.evidence[0].startswith("actions[6] (kLeftWristYaw)  -")
    assert "100.0% beyond 1.05" in outcome.evidence[0]
    assert outcome.hint.text.endswith("The data's own keep every value within 1.1")
    assert outcome.expected == {"furthest": "within 100"}


def test_a_joint_that_hardly_ever_moves_trips_it_alone_and_z_scores_are_offered(v30):
    def at_rest(values):
        for frame, value in enumerate(values):
            value[5] = {200: 0.12, 201: 0.3, 202: 0.5, 203: 0.25}.get(frame, 0.001 * (frame % 2))

    replace_column(v30, "observation.state", at_rest)
    outcome = the_one_that_speaks(context(f"data.root={v30}", "data.norm=quantile"), "data.norm-stats")
    assert outcome.summary.startswith(
        "state[5] (kLeftWristPitch) normalises to 998: q01 0 and q99 0.001 are 0.001 apart"
    )
    assert outcome.hint.commands[0].endswith("--set data.norm=zscore")
    assert "stays within 17" in outcome.hint.text
    assert spoken(run_data(context(f"data.root={v30}", "data.norm=zscore"))) == set()


@pytest.mark.parametrize("norm", ["zscore", "quantile"])
@pytest.mark.parametrize("value", [0.0, 1.5686])
def test_a_dimension_that_never_moves_is_no_fault(v30, tmp_path, norm, value):
    for key in ("observation.state", "action"):
        replace_column(v30, key, lambda values: [entry.__setitem__(2, value) for entry in values])
    same = (f"data.root={v30}", f"data.norm={norm}")
    assert spoken(run_data(context(*same))) == set()
    assert spoken(run_data(context(*same, written(tmp_path, own_statistics(*same))))) == set()


@pytest.mark.parametrize("norm", ["zscore", "quantile"])
@pytest.mark.parametrize(("computed", "used"), [("[]", "[26]"), ("[26]", "[]")])
def test_statistics_of_absolute_actions_are_not_those_of_relative_ones(tmp_path, norm, computed, used):
    setting = written(tmp_path, own_statistics(f"data.delta_actions={computed}"))
    checked = context(setting, f"data.delta_actions={used}", f"data.norm={norm}")
    outcome = the_one_that_speaks(checked, "data.norm-stats")
    assert "of 52 dimensions go beyond 100" in outcome.summary
    assert outcome.hint.text.startswith("compute the statistics again, from this dataset and with this config's tra")
    assert all(label.startswith("actions[") for label in outcome.measured["blown_up"])


@pytest.mark.parametrize("norm", ["zscore", "quantile"])
def test_statistics_of_shorter_chunks_are_of_other_data(tmp_path, norm):
    setting = written(tmp_path, own_statistics("data.delta_actions=[26]", "model.action_horizon=10"))
    checked = context(setting, "data.delta_actions=[26]", f"data.norm={norm}")
    outcome = the_one_that_speaks(checked, "data.norm-stats", "warn")
    assert outcome.summary.startswith(f"the statistics of {tmp_path / 'norm_stats.json'} are of other data: ")
    assert "actions[" in outcome.summary
    assert len(outcome.evidence) <= 9
    assert "pretrained model are reused on purpose" in outcome.hint.text
    assert outcome.hint.commands[0].startswith("preflight norm-stats ")
    assert outcome.hint.commands[0].endswith("--write")
    assert "--set data.norm_stats=none" in outcome.hint.commands[1]


def test_statistics_that_are_ten_times_too_wide_are_of_other_data():
    stats = own_statistics()
    wide = changed(stats, "state", std=stats["state"].std * 11)
    outcome = said(given(wide))
    assert outcome.status == "warn"
    assert "26 of 26 dimensions of state move less than a tenth as far as there" in outcome.summary
    some = changed(stats, "state", std=stats["state"].std * np.where(np.arange(26) < 13, 100, 1))
    assert said(given(some)).status == "pass"  # one task does not move every joint of a base model's


def test_one_dimension_that_is_off_is_named():
    stats = own_statistics()
    state = stats["state"]
    off = changed(stats, "state", mean=at(state.mean, 8, state.mean[8] + 4 * state.std[8]))
    outcome = said(given(off))
    assert outcome.status == "warn"
    assert "are of other data: look at state[8] (kRightShoulderRoll), " in outcome.summary
    assert outcome.measured["disagreeing"] == ["state[8] (kRightShoulderRoll)"]


def test_what_only_a_few_frames_do_shows_where_all_are_looked_at(v30, tmp_path, monkeypatch):
    setting = written(tmp_path, own_statistics())
    monkeypatch.setattr(data_norm_stats, "_FRAMES", 20)
    replace_column(v30, "observation.state", lambda values: values[201].__setitem__(4, 1.4))
    settings = (f"data.root={v30}", setting)
    assert said(context(*settings)).status == "pass"
    told = []
    outcome = said(context(*settings, level="full", progress=lambda *done: told.append(done)))
    assert outcome.status == "fail"
    assert outcome.summary.startswith(
        "state[4] (kLeftWristRoll) normalises to 298: the std is 0.002 about a mean of 0.8"
    )
    assert (outcome.measured["frames"], outcome.measured["frames_looked_at"]) == (498, 498)
    assert told[-1] == ("frames normalised", 498, 498)


def test_statistics_of_other_episodes_show_where_all_frames_are_looked_at(v30, tmp_path, monkeypatch):
    setting = written(tmp_path, own_statistics())
    monkeypatch.setattr(data_norm_stats, "_FRAMES", 3)  # frames 0, 248 and 497

    def moved(values):
        for value in [*values[1:248], *values[249:497]]:
            value[9] += 2.0

    replace_column(v30, "observation.state", moved)
    settings = (f"data.root={v30}", setting)
    assert said(context(*settings)).status == "pass"
    outcome = said(context(*settings, level="full"))
    assert outcome.status == "warn"
    assert "are of other data: look at state[9] (kRightShoulderYaw)" in outcome.summary


@pytest.mark.parametrize("root", [V30, V21])
@pytest.mark.parametrize("norm", ["zscore", "quantile"])
def test_all_frames_of_real_data_are_silent(tmp_path, root, norm):
    same = (f"data.root={root}", f"data.norm={norm}", DELTA)
    setting = written(tmp_path, own_statistics(*same))
    full, part = (said(context(*same, setting, level=level)) for level in ("full", "standard"))
    assert (full.status, full.measured) == ("pass", part.measured)  # of 498 frames a part is all of them


def test_a_formula_that_the_model_does_not_want_is_a_warning():
    outcome = the_one_that_speaks(context("model.pi05=true", "data.norm=zscore"), "data.norm-stats", "warn")
    assert outcome.summary.startswith("data are normalised by zscore, the model wants quantile: ")
    assert outcome.hint.commands[0].endswith("--set data.norm=none")
