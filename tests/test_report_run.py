"""What a run's report says, against runs that went wrong in one way each; and a run that is whole, quiet."""

import json
import math
import os
import random
from array import array

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folder import REAL, STEPS, SUMMARY, change, log, measure, picture, records, run_folder

from preflight.report.run_criteria import judged_criteria
from preflight.report.run_curves import BUCKETS, curve, rate, run_clock
from preflight.report.run_document import run_document, run_schema
from preflight.report.run_milestones import kept_steps, milestone_steps, save_steps
from preflight.report.run_read import read_run
from preflight.report.run_report import read_report
from preflight.report.run_series import Series
from preflight.report.run_trend import falling
from preflight.runs import load_run
from preflight.training import camera_views
from preflight.training import folder as training_folder

SCHEMA = jsonschema.Draft202012Validator(run_schema())


def test_the_schema_is_one():
    SCHEMA.check_schema(run_schema())


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path)


def said(folder):
    """The report's document, which always keeps its schema."""
    document, _ = read_report(folder)
    document = json.loads(json.dumps(document, allow_nan=False))
    SCHEMA.validate(document)
    return document


def outcomes(folder):
    return {found["text"].split(":")[0]: (found["outcome"], found["seen"]) for found in said(folder)["criteria"]}


def forecast(folder, name):
    return next(row for row in said(folder)["forecast"] if row["name"] == name)


def notes(folder):
    return [f"{note['file']} {note['text']}" for note in said(folder)["notes"]]


def series(values, x=None):
    found = Series()
    for place, value in enumerate(values) if x is None else zip(x, values, strict=True):
        found.add(place, value)
    return found


def test_a_whole_run_is_told_without_a_note(folder):
    document = said(folder)
    assert document["notes"] == document["alerts"] == []
    assert document["verdict"]["sentence"] == "Completed: all 60 steps in 25.1\u202fs."
    lines = [json.loads(line) for line in (REAL / "metrics.jsonl").read_text().splitlines()]
    assert document["metrics"].keys() == lines[-1].keys() - {"step", "time"}
    for name, found in document["metrics"].items():
        values = [line[name] for line in lines if name in line]
        assert found["mean"] == found["min"] == found["max"] == values
        assert (found["least"], found["greatest"]) == (min(values), max(values))
    assert [found["outcome"] for found in document["criteria"]].count("not-met") == 1
    assert outcomes(folder)["Losses make sense"] == ("not-met", "1.34 to 2.21 up to step 59")
    assert [start["step"] for start in document["starts"]] == [0]
    assert document["clearance"]["verdict"] == "cleared-with-warnings"
    assert document["checkpoints"] == [{"step": 59, "bytes": 5_353_052}]


@pytest.mark.parametrize(
    ("summary", "steps", "state", "sentence"),
    [
        ({"exit": "interrupted", "reason": "SIGTERM"}, 40, "interrupted", "Interrupted at step 39 of 60: SIGTERM. "),
        (
            {"exit": "stopped", "reason": "the loss is nan."},
            40,
            "stopped",
            "Stopped by the watch at step 39 of 60: ",
        ),
        ({"exit": "failed", "reason": "worker died"}, 40, "failed", "Failed at step 39 of 60: worker died. Newest che"),
        (
            None,
            40,
            "unfinished",
            "Unfinished at step 39 of 60, logged 2023-11-14 22:13 UTC: the run is ",
        ),
        (None, 60, "completed", "Completed: all 60 steps."),
        ({"exit": "exploded"}, 40, "unfinished", "Unfinished at step 39 of 60"),
        ({"exit": ["completed"]}, 40, "unfinished", "Unfinished at step 39 of 60"),
    ],
)
def test_how_a_run_ended(tmp_path, summary, steps, state, sentence):
    folder = run_folder(tmp_path, summary=None if summary is None else SUMMARY | summary)
    log(folder, records(steps, every=5))
    verdict = said(folder)["verdict"]
    assert verdict["state"] == state
    assert verdict["sentence"].startswith(sentence)
    met = outcomes(folder)["The run completes without a crash"][0]
    assert met == {"completed": "met", "unfinished": "not-known"}.get(state, "not-met")


def test_a_summary_of_an_earlier_start_is_not_taken_for_the_end(folder):
    last = records(40, every=5)[-1]["time"]
    log(folder, records(40, every=5))
    os.utime(folder / "summary.json", (last - 60, last - 60))
    assert said(folder)["verdict"]["state"] == "unfinished"
    assert notes(folder) == ["summary.json of an earlier start: the run went on after it was written"]
    assert said(folder)["figures"]["goodput"] is None


def test_what_is_missing_is_named_in_its_place(folder):
    for name, what in {
        "config.json": "the run's settings are not known",
        "clearance.json": "the run was started without --after-checks",
        "summary.json": "the run has not ended",
        "telemetry.jsonl": "the machine was not watched",
        "metrics.jsonl": "no step was logged",
    }.items():
        (folder / name).unlink()
        assert any(note.startswith(f"{name} not there: {what}") for note in notes(folder)), name
    assert said(folder)["verdict"]["state"] == "unknown"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"checks": {"a": 1}}', b"null"])
def test_damaged_documents_are_named_and_stop_nothing(folder, content):
    for name in ("config.json", "clearance.json", "summary.json"):
        (folder / name).write_bytes(content)
    document = said(folder)
    damaged = [note["file"] for note in document["notes"] if note["text"].startswith("damaged")]
    assert damaged == ([] if b"checks" in content else ["config.json", "clearance.json", "summary.json"])
    assert document["verdict"]["last_step"] == 59


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_values_of_any_type_stop_nothing(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any") / "x"
    folder.mkdir()
    for name in ("config.json", "clearance.json", "summary.json"):
        path = REAL / name
        document = json.loads(path.read_text()) if path.exists() else dict(SUMMARY)
        for key in data.draw(st.lists(st.sampled_from(sorted(document)), max_size=6)):
            document[key] = data.draw(json_values)
        (folder / name).write_text(json.dumps(document))
    for name in ("metrics.jsonl", "telemetry.jsonl", "alerts.jsonl"):
        lines = (REAL / name).read_text().splitlines() if (REAL / name).exists() else ['{"rule": "a", "step": 1}'] * 3
        found = [json.loads(line) for line in lines[:5]]
        for line in found:
            for key in data.draw(st.lists(st.sampled_from(sorted(line)), max_size=3)):
                line[key] = data.draw(json_values)
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in found))
    document = run_document(read_run(folder))
    SCHEMA.validate(json.loads(json.dumps(document, allow_nan=False)))


def test_a_line_that_is_cut_short_is_left_out(folder):
    text = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(text[:-100])
    assert notes(folder) == ["metrics.jsonl its last line, 13, is cut short and left out"]
    assert said(folder)["verdict"]["last_step"] == 55
    lines = text.splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join([*lines[:4], b"\0" * 3_000_000 + b"\n", b"7\n", *lines[4:]]))
    assert notes(folder) == ["metrics.jsonl 2 of 15 lines are damaged and left out: 5, 6"]
    assert said(folder)["metrics"]["loss"]["points"] == 13


def test_steps_that_were_made_again_count_once(folder):
    before, after = records(40, loss=0.5, every=5), records(60, loss=0.05, every=5)[5:]
    for name in [name for name in after[0] if name.startswith("efficiency/")]:
        del after[0][name]
    for record in after:
        record["time"] += 7200
    log(folder, [*before, *after])
    document = said(folder)
    loss = document["metrics"]["loss"]
    assert loss["x"] == [*range(0, 60, 5), 59]
    assert loss["mean"] == [0.5] * 5 + [0.05] * 8
    assert [(start["step"], start["pause_s"] and round(start["pause_s"])) for start in document["starts"]] == [
        (0, None),
        (25, 7201),
    ]
    assert notes(folder) == ["metrics.jsonl it goes back to step 25; of steps logged twice, the later counts"]


def test_a_pause_takes_no_time_of_running(folder):
    (folder / "telemetry.jsonl").unlink()
    late = records(60, every=5)
    log(folder, [r | {"time": 1.7e9 + r["step"] * 2 + (9000 if r["step"] >= 30 else 0)} for r in late])
    clock = run_clock(read_run(folder))
    assert [end - start for start, end in clock.pauses] == [9010]
    assert clock.at(1.7e9 + 9000 + 118) == 108
    assert clock.at(1.7e9 + 4000) == 50
    assert said(folder)["over_time"]["pauses"] == [{"at_s": 50.0, "seconds": 9010.0}]


def test_not_a_number_is_kept_apart_and_seen(folder):
    log(
        folder,
        [r | ({"loss": "nan", "loss_max": "inf"} if r["step"] in (20, 25) else {}) for r in records(60, every=5)],
    )
    found = said(folder)["metrics"]
    assert (found["loss"]["not_finite"], found["loss"]["not_finite_at"]) == (2, [20.0, 25.0])
    assert found["loss"]["broken"] == [4, 5]
    assert found["loss_max"]["greatest"] < math.inf
    assert outcomes(folder)["Losses make sense"] == ("not-met", "2 of 13 early losses are no finite number")
    assert outcomes(folder)["All extended metrics over the whole run"][0] == "not-met"


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(width=32) | st.sampled_from([math.nan, math.inf, 1e300]), max_size=1500),
    gaps=st.integers(1, 50),
)
def test_no_spike_is_lost_between_the_buckets(values, gaps):
    rng = random.Random(gaps)
    x = np.cumsum([rng.randint(1, gaps) for _ in values]).tolist()
    found = curve(series(values, x))
    finite = [value for value in values if math.isfinite(value)]
    assert len(found["x"]) <= BUCKETS
    assert found["points"] == len(values)
    assert found["not_finite"] == len(values) - len(finite)
    kept = [(low, high) for low, high in zip(found["min"], found["max"], strict=True) if low is not None]
    if finite:
        assert min(low for low, _ in kept) == min(finite) == found["least"]
        assert max(high for _, high in kept) == max(finite) == found["greatest"]
    assert found["x"] == sorted(found["x"])
    assert all(m is None or lo - abs(lo) * 1e-9 <= m <= hi + abs(hi) * 1e-9 for lo, m, hi in
               zip(found["min"], found["mean"], found["max"], strict=True))  # fmt: skip


def test_one_value_in_300_000_stays(tmp_path):
    values = array("d", [0.01]) * 300_000
    values[123_456] = 99.0
    found = curve(Series(array("d", range(300_000)), values))
    assert found["greatest"] == max(high for high in found["max"]) == 99.0
    assert len(json.dumps(found)) < 40_000


def test_rates_leave_out_a_count_that_starts_anew():
    found = rate(series([0.0, 10.0, 10.1, 30.0, 5.0, 25.0, 90.0, 94.0], [0, 2, 2.1, 4, 6, 8, 5000, 5002]))
    assert list(found.x) == [2, 4, 8, 5002]
    assert list(found.y) == [5, 10, 10, 2]


def test_an_offline_run_is_not_said_to_be_in_wandb(folder):
    name = "The extended metrics are logged, and wandb was started"
    assert outcomes(folder)[name][0] == "met"
    (folder / "wandb" / "offline-run-20261124_051435-l80nvrl8").mkdir(parents=True)
    assert outcomes(folder)[name][0] == "not-known"
    (folder / "wandb_id.txt").unlink()
    (folder / "wandb" / "offline-run-20261124_051435-l80nvrl8").rmdir()
    assert outcomes(folder)[name][0] == "not-known"
    change(folder, "config.json", wandb_enabled=False)
    assert outcomes(folder)[name][0] == "not-applicable"


def medium(tmp_path, **values):
    folder = run_folder(tmp_path, num_train_steps=2001, save_interval=1000, keep_period=1000)
    log(folder, records(2001, **values))
    for step in (1000, 2000):
        picture(folder / "camera_views" / f"step_{step:06d}.png", step)
        (folder / str(step)).mkdir()
    return folder


def falls(step):
    return 0.01 + 0.06 * math.exp(-step / 600)


def test_a_run_as_it_should_be_meets_every_criterion(tmp_path):
    folder = medium(tmp_path, loss=falls, **{"efficiency/steps_per_sec": 12.5, "efficiency/data_wait": 0.001})
    change(folder, "config.json", num_workers=8)
    measure(folder, "loader.throughput", samples_per_s={"2": [84.0, 80.0, 88.0], "8": [322.0, 309.0, 334.0]})
    line = json.loads((REAL / "telemetry.jsonl").read_text().splitlines()[-1])
    gpu = {"index": 0, "utilization_percent": 97, "memory_used_bytes": 2**36, "throttle_reasons": ["gpu_idle"]}
    samples = [line | {"time": 1.7e9 + second, "gpus": [gpu]} for second in range(0, 250, 2)]
    (folder / "telemetry.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    found = outcomes(folder)
    assert {outcome for outcome, _ in found.values()} == {"met"}, found
    assert found["GPU busy more than 90% of the time"][1] == "97\u202f% on average"
    assert found["Loading is at least 3 times as fast as with two workers"][1].startswith("3.8 times: 322 samples/s")
    assert said(folder)["over_time"]["throttled"] == {}
    # Break one thing at a time: that one alone is not met.
    samples = [
        one | {"gpus": [gpu | {"utilization_percent": 41, "throttle_reasons": ["hw_slowdown"]}]} for one in samples
    ]
    (folder / "telemetry.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    assert [text for text, (outcome, _) in outcomes(folder).items() if outcome != "met"] == [
        "GPU busy more than 90% of the time"
    ]
    assert said(folder)["over_time"]["throttled"] == {"GPU 0: hw_slowdown": 1.0}


@pytest.mark.parametrize(
    ("broken", "criterion", "seen"),
    [
        ({"loss": lambda step: 0.05 + 0.001 * (step // 100 % 2)}, "The loss falls", "Kendall's tau"),
        ({"loss": lambda step: 0.01 + step / 30_000}, "The loss falls", "tau +1.00 over 20 block medians"),
        ({"loss": falls, "grad_norm": lambda s: 40.0 if s == 1500 else 1.0}, "Gradients are stable", "at most 40"),
        ({"loss": falls, "grad_max": lambda s: 310.0 if s == 1500 else 1.0}, "Gradients are stable", "grad_max 310"),
        ({"loss": falls, "grad_norm": lambda s: "nan" if s == 1500 else 1.0}, "Gradients are stable", "at step 1,500"),
        ({"loss": lambda step: 3 * falls(step)}, "Losses make sense", "0.182 to 0.21 up to step 100"),
        ({"loss": falls, "efficiency/steps_per_sec": 4.0}, "At least 10 steps/s", "4 steps/s on a CPU"),
    ],
)  # fmt: skip
def test_each_criterion_sees_what_breaks_it(tmp_path, broken, criterion, seen):
    values = {"efficiency/steps_per_sec": 12.0} | broken
    found = outcomes(medium(tmp_path, **values))
    assert found[criterion][0] in ("not-met", "not-applicable")
    assert seen in found[criterion][1]


def test_intervals_without_an_update_lack_no_metric(folder):
    every = records(60, every=5)
    log(folder, [{k: v for k, v in r.items() if r["step"] % 10 or not k.startswith("update_")} for r in every])
    assert outcomes(folder)["All extended metrics over the whole run"][0] == "not-met"
    change(folder, "config.json", gradient_accumulation_steps=10)
    assert outcomes(folder)["All extended metrics over the whole run"][0] == "met"


def test_pictures_and_checkpoints_that_are_missing_are_named(folder):
    (folder / "camera_views" / "step_000040.png").unlink()
    (folder / "59").rename(folder / "59.orbax-checkpoint-tmp-1")
    found = outcomes(folder)
    assert found["Camera views at every milestone"] == ("not-met", "3 of 4 pictures; missing: step 40")
    assert found["Checkpoints at the steps to be kept"][0] == "not-met"
    (folder / "camera_views" / "step_000000.png").write_bytes(b"\x89PNG")
    assert outcomes(folder)["Camera views of step 0 can be seen"] == (
        "not-met",
        "camera_views/step_000000.png is damaged, or no PNG picture",
    )
    assert "camera_views/step_000000.png not shown: damaged, or no PNG picture" in notes(folder)


@pytest.mark.parametrize(
    "assignments",
    [[], ["num_train_steps=60", "save_interval=20"], ["keep_period=20", "save_interval=10", "milestones=[3, 7, 5000]"]],
)
def test_the_steps_are_those_of_the_loop(assignments, tmp_path):
    facts = load_run("pi0_lighter_cup_demo", assignments=assignments).facts
    config = json.loads(json.dumps(facts.settings))
    assert milestone_steps(config) == sorted(camera_views.milestone_steps(facts))
    assert save_steps(config) == training_folder.save_steps(facts)
    assert kept_steps(config) == training_folder.kept_steps(facts)


def test_forecasts_are_held_against_what_was_seen(folder):
    row = forecast(folder, "Steps per second")
    assert row["forecast"] == [27.1 / 4, 62.6 / 4]
    assert (row["kind"], row["judgement"]) == ("at-most", "held")
    # With the GPU's demand known, the slower of both is foretold.
    measure(folder, "loader.throughput", demand_samples_per_s=[12.0, 20.0])
    row = forecast(folder, "Steps per second")
    assert (row["kind"], row["forecast"], row["judgement"]) == ("about", [3.0, 5.0], "held")
    measure(folder, "loader.throughput", demand_samples_per_s=[40.0, 60.0])
    assert forecast(folder, "Steps per second")["judgement"] == "below"
    assert forecast(folder, "Time spent waiting for data")["observed"] == pytest.approx(0.072, abs=0.001)
    row = forecast(folder, "Size of a checkpoint")
    assert (row["judgement"], row["ratio"]) == ("held", None)  # rounded so coarsely that a ratio would say nothing
    measure(folder, "storage.space", checkpoint_gib=0.0)
    measure(folder, "memory.workers", workers_mib=100.0, baseline_mib=200.0)
    telemetry = [json.loads(line) for line in (REAL / "telemetry.jsonl").read_text().splitlines()]
    telemetry = [sample for sample in telemetry if sample["tree"]]  # the last one finds the process gone
    telemetry[-1]["workers"]["pss_bytes"], telemetry[-1]["tree"]["pss_bytes"] = 150 * 2**20, 250 * 2**20
    (folder / "telemetry.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in telemetry))
    assert forecast(folder, "RAM of the loader's workers")["ratio"] == 1.5
    assert forecast(folder, "RAM of the loader's workers")["judgement"] == "above"
    assert forecast(folder, "RAM of the whole run")["judgement"] == "held"
    assert forecast(folder, "Memory of the fullest GPU")["judgement"] == "not-applicable"


def test_a_gpus_memory_is_judged_by_what_the_allocator_counted(tmp_path):
    folder = run_folder(tmp_path, summary=SUMMARY | {"device_peak_bytes": 54 * 2**30})
    measure(folder, "memory.device", step_gib=55.1)
    row = forecast(folder, "Memory of the fullest GPU")
    assert (row["judgement"], row["observed"]) == ("held", 54 * 2**30)
    assert row["ratio"] == pytest.approx(54 / 55.1)
    measure(folder, "memory.device", step_gib=40.0)
    assert forecast(folder, "Memory of the fullest GPU")["judgement"] == "above"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(60, 400))
def test_a_falling_loss_under_noise_and_spikes_falls(seed, count):
    rng = random.Random(seed)
    values = [0.01 + 0.06 * math.exp(-4 * i / count) * rng.uniform(0.8, 1.25) for i in range(count)]
    values[rng.randrange(count)] = 50.0
    assert falling(values).falls
    assert not falling(values[::-1]).falls


def test_noise_alone_falls_as_often_as_the_level_says():
    rng, draws, level = random.Random(7), 3000, 0.05
    found = sum(falling([rng.gauss(0.05, 0.01) for _ in range(100)]).falls for _ in range(draws))
    # Within four standard deviations of the count; a few hundred draws would not tell 5 % from 10 %.
    assert abs(found - level * draws) <= 4 * math.sqrt(draws * level * (1 - level))
    assert falling([1.0] * 100).falls is False
    assert falling([3.0, 2.0, 1.0]) is None


def test_criteria_are_asked_of_every_run_alike(folder):
    texts = [found["text"] for found in judged_criteria(read_run(folder))]
    (folder / "metrics.jsonl").unlink()
    assert [found["text"] for found in judged_criteria(read_run(folder))] == texts
    assert len(set(texts)) == len(texts)
    assert STEPS[-1] == 59
