import dataclasses
import json
from importlib import resources

import jsonschema
import numpy as np
import pytest
from sweep_sample import ENVIRONMENT, point, sweep_result

from bench.baseline import baseline_names, load_baseline, require_saveable, save_baseline
from bench.comparison import compare, memory_verdict, speed_verdict
from bench.results import Dataset, PartialSweep
from bench.statistics import Estimate, median_ratio
from bench.table import render_comparison, render_table
from preflight.errors import PreflightError, UsageError

SCHEMA = json.loads(resources.files("bench").joinpath("bench_loader.schema.json").read_text())


def against(new, old, folder):
    save_baseline(old, "old", folder)
    return compare(new, load_baseline("old", folder))


def test_a_ratio_of_medians_has_an_interval_that_holds_the_truth():
    rng = np.random.default_rng(0)
    held = wide = 0
    for _ in range(100):
        new, old = ([rng.lognormal(np.log(median), 0.05, 25) for _ in range(3)] for median in (120, 100))
        ratio = median_ratio(new, old)
        held += ratio.lo <= 1.2 <= ratio.hi
        wide += ratio.hi - ratio.lo > 0.2
    # Rounds are drawn as well as blocks, so the interval is rather too wide than too narrow where rounds agree.
    assert held >= 93
    assert wide == 0


def test_rounds_that_disagree_widen_the_ratio():
    rng = np.random.default_rng(0)
    steady = [rng.normal(100, 1, 20) for _ in range(3)]
    drifting = [rng.normal(level, 1, 20) for level in (90, 100, 110)]
    narrow, broad = median_ratio(steady, steady), median_ratio(drifting, steady)
    assert broad.hi - broad.lo > 5 * (narrow.hi - narrow.lo)
    assert median_ratio(drifting, steady, seed=1) == median_ratio(drifting, steady, seed=1)


def test_few_values_give_the_range_of_the_ratio():
    assert median_ratio([[100.0, 110.0, 120.0]], [[50.0, 55.0], [60.0]]) == Estimate(2.0, 100 / 60, 120 / 50)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Estimate(1.2, 1.1, 1.3), "faster"),
        (Estimate(0.8, 0.7, 0.9), "slower"),
        (Estimate(1.2, 0.99, 1.4), "no difference"),
        (Estimate(1.008, 1.004, 1.012), "no difference"),
        (Estimate(0.985, 0.981, 0.989), "slower"),
    ],
)
def test_the_verdict_is_the_intervals(ratio, verdict):
    assert speed_verdict(ratio) == verdict


@pytest.mark.parametrize(
    ("pss", "uss", "verdict"),
    [
        ((169.0, 120.0), (109.0, 60.0), "no difference"),
        ((171.0, 120.0), (111.0, 60.0), "more"),
        ((109.0, 160.0), (49.0, 100.0), "less"),
        ((1090.0, 1000.0), (1090.0, 1000.0), "no difference"),
        # Another process came or went that maps the same libraries.
        ((180.0, 120.0), (60.0, 60.0), "no difference"),
        ((60.0, 120.0), (115.0, 60.0), "no difference"),
        ((None, None), (115.0, 60.0), "more"),
        ((None, 120.0), (None, 60.0), None),
    ],
)
def test_memory_differs_where_pss_and_uss_say_so(pss, uss, verdict):
    assert memory_verdict(pss, uss) == verdict


def test_faster_slower_and_the_same_are_told_for_each_number_of_workers(tmp_path):
    old = sweep_result(point(1, 100), point(2, 100), point(4, 100), point(0, 100))
    new = sweep_result(
        point(1, 120, seed=1),
        point(2, 80, seed=1, pss_mib=240.0),
        point(4, 100, seed=1),
        point(0, 100, seed=1),
        point(8, 100),
    )
    found = against(new, old, tmp_path)
    assert found.comparable
    assert [(one.num_workers, one.verdict, one.memory_verdict) for one in found.points] == [
        (1, "faster", "no difference"),
        (2, "slower", "more"),
        (4, "no difference", "no difference"),
        (0, "no difference", None),
    ]
    assert found.points[0].ratio.lo < 1.2 < found.points[0].ratio.hi
    assert found.unmatched == (8,)
    lines = render_comparison(found).splitlines()
    assert lines[0] == "Against the baseline old:"
    assert lines[1].startswith("  1 worker: faster, 1.20x [1.1")
    assert lines[2].startswith("  2 workers: slower, 0.80x [0.")
    assert lines[2].endswith("; more RAM a worker, 240 MiB PSS and 120 USS against 120 and 60")
    assert lines[-1] == "  8 workers: not in the baseline"


def test_a_sweep_is_no_different_from_itself_as_it_was_stored(tmp_path):
    result = sweep_result(point(2, 123.4), point(4, 210))
    found = against(result, result, tmp_path)
    assert {one.verdict for one in found.points} == {"no difference"}
    # Stored intervals are rounded to microseconds.
    assert [one.ratio.median for one in found.points] == pytest.approx([1, 1], abs=1e-4)
    assert [one.there for one in found.points] == [one.here for one in found.points]


def test_what_varies_too_much_is_said(tmp_path):
    rounds = [point(2, rate, rounds=1).intervals_s[0] for rate in (60, 100, 200)]
    wild = dataclasses.replace(point(2, 100), intervals_s=tuple(rounds))
    text = render_comparison(against(sweep_result(wild), sweep_result(point(2, 40)), tmp_path))
    assert text.splitlines()[1].endswith("; too unstable to build on")


def altered(**environment):
    packages = {**ENVIRONMENT["packages"], **environment.pop("packages", {})}
    return {"environment": {**ENVIRONMENT, **environment, "packages": packages}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (altered(cpu="Intel Xeon"), "CPU: AMD EPYC 7763 here, Intel Xeon there"),
        (altered(cpus_usable=1.5), "usable CPUs: 4 here, 1.5 there"),
        (altered(ram_bytes=32 << 30), "RAM: 16.0 GiB here, 32.0 GiB there"),
        (altered(python="3.12.1"), "python: 3.11.7 here, 3.12.1 there"),
        (altered(packages={"av": "15.1.0"}), "av: 14.0.0 here, 15.1.0 there"),
        (altered(packages={"torch": None}), "torch: 2.8.0 here, unknown there"),
        (altered(packages={"robot-preflight": "0.2.0"}), "preflight: 0.1.0 here, 0.2.0 there"),
        ({"batch_size": 16}, "batch size: 8 here, 16 there"),
        ({"start_method": "spawn"}, "start method: forkserver here, spawn there"),
        (
            {"dataset": Dataset(frames=498, root="/data/g2", codebase_version="v3.0")},
            "dataset root: /data/g1 here, /data/g2 there",
        ),
        (
            {"dataset": Dataset(frames=499, root="/data/g1", codebase_version="v3.0")},
            "dataset frames: 498 here, 499 there",
        ),
        (
            {"dataset": Dataset(frames=498, root="/data/g1", codebase_version="v2.1")},
            "dataset format: v3.0 here, v2.1 there",
        ),
    ],
)
def test_another_machine_dataset_or_version_is_not_compared(tmp_path, changes, line):
    found = against(sweep_result(point(2, 100)), sweep_result(point(2, 50), **changes), tmp_path)
    assert not found.comparable
    assert found.points == ()
    assert render_comparison(found) == f"Against the baseline old: not comparable, these differ.\n  {line}\n"


def test_a_description_tells_datasets_of_ones_own_apart(tmp_path):
    mine, other = (Dataset(frames=64, description=text) for text in ("zarr, local", "zarr, NFS"))
    found = against(sweep_result(point(2, 9), dataset=mine), sweep_result(point(2, 9), dataset=other), tmp_path)
    assert [one.field for one in found.differences] == ["dataset"]


def test_another_boot_of_the_machine_and_another_config_are_compared(tmp_path):
    old = sweep_result(point(2, 50), config="before", **altered(ram_bytes=(16 << 30) - 8192, kernel="6.2.0"))
    found = against(sweep_result(point(2, 100)), old, tmp_path)
    assert [one.verdict for one in found.points] == ["faster"]
    assert render_comparison(found).startswith("Against the baseline old (config g1 here, before there):\n")


def test_every_document_validates(tmp_path):
    new, old = sweep_result(point(2, 100), point(4, 1)), sweep_result(point(2, 100))
    same = against(new, old, tmp_path).to_json()
    other = against(new, dataclasses.replace(old, batch_size=4), tmp_path).to_json()
    for document in (new.to_json(), new.to_json() | {"comparison": same}, new.to_json() | {"comparison": other}):
        jsonschema.validate(json.loads(json.dumps(document)), SCHEMA)
    assert json.loads((tmp_path / "old.json").read_text())["complete"] is True
    with pytest.raises(jsonschema.ValidationError, match="memory"):
        jsonschema.validate({key: value for key, value in new.to_json().items() if key != "memory"}, SCHEMA)


def test_a_partial_sweep_says_what_was_not_reached(tmp_path):
    partial = PartialSweep(
        batch_size=8, environment=ENVIRONMENT, points=(point(2, 100),), asked=(2, 4, 8), demand_samples_per_s=None
    )
    document = json.loads(json.dumps(partial.to_json()))
    jsonschema.validate(document, SCHEMA)
    assert document["complete"] is False
    text = " ".join(render_table(partial).split())
    assert "Partial: the sweep ended before its time; 4, 8 workers were not reached." in text
    assert "Recommended" not in text
    assert "> 2" not in text
    (tmp_path / "partial.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"partial.json is damaged: it is no complete sweep"):
        load_baseline("partial", tmp_path)


def test_an_unknown_baseline_lists_those_there_are(tmp_path):
    with pytest.raises(UsageError) as caught:
        load_baseline("main", tmp_path / "none")
    assert caught.value.hint == f"{tmp_path / 'none'} holds none; store one with --save main"
    for name in ("main", "before"):
        save_baseline(sweep_result(point(2, 100)), name, tmp_path)
    assert baseline_names(tmp_path) == ["before", "main"]
    with pytest.raises(UsageError) as caught:
        load_baseline("mian", tmp_path)
    assert caught.value.message == "unknown baseline 'mian'; did you mean 'main'?"
    assert caught.value.hint == f"valid: before, main; in {tmp_path}"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/etc/x", ".hidden", "a\n", "a" * 300])
def test_a_name_that_is_no_file_name(tmp_path, name):
    for action in (require_saveable, load_baseline):
        with pytest.raises(UsageError, match="cannot be a baseline's name"):
            action(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def whole():
    return sweep_result(point(2, 100)).to_json()


def without(key):
    return {name: value for name, value in whole().items() if name != key}


DAMAGED = {
    "cut off": json.dumps(whole())[:-40],
    "empty": "",
    "no object": "[]",
    "newer": json.dumps(whole() | {"schema_version": 2}),
    "no points": json.dumps(without("points")),
    "no raw": json.dumps(without("raw")),
    "raw of others": json.dumps(whole() | {"raw": [{"num_workers": 3, "batch_intervals_s": [[1.0, 1.0, 1.0]]}]}),
    "too few": json.dumps(whole() | {"raw": [{"num_workers": 2, "batch_intervals_s": [[1.0]]}]}),
    "no seconds": json.dumps(whole() | {"raw": [{"num_workers": 2, "batch_intervals_s": [["x", "y"]]}]}),
    "not a number": json.dumps(whole() | {"raw": [{"num_workers": 2, "batch_intervals_s": [[float("nan"), 1.0]]}]}),
    "negative": json.dumps(whole() | {"raw": [{"num_workers": 2, "batch_intervals_s": [[-1.0, 2.0]]}]}),
    "all 0": json.dumps(whole() | {"raw": [{"num_workers": 2, "batch_intervals_s": [[0.0, 0.0]]}]}),
    "points of nothing": json.dumps(whole() | {"points": [{"num_workers": 2}]}),
    "points of words": json.dumps(whole() | {"points": ["x"]}),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_baseline_is_named(tmp_path, kind):
    (tmp_path / "main.json").write_text(DAMAGED[kind])
    with pytest.raises(UsageError) as caught:
        load_baseline("main", tmp_path)
    assert caught.value.message.startswith(f"the baseline {tmp_path / 'main.json'} is damaged: ")
    assert caught.value.hint == "delete it and measure it again with --save main"


def test_a_baseline_that_is_no_text_or_a_folder(tmp_path):
    (tmp_path / "main.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"main.json is damaged: it is no text"):
        load_baseline("main", tmp_path)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match=r"folder.json cannot be read: Is a directory"):
        load_baseline("folder", tmp_path)


def test_where_it_could_not_be_saved_is_known_before(tmp_path):
    require_saveable("main", tmp_path / ".preflight" / "bench")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".preflight").write_text("")
    with pytest.raises(UsageError, match=r"--save main: .* cannot be written: .*\.preflight is no folder"):
        require_saveable("main", tmp_path / ".preflight" / "bench")
    with pytest.raises(PreflightError, match=r"the baseline .*main.json cannot be written: Not a directory"):
        save_baseline(sweep_result(point(2, 100)), "main", tmp_path / ".preflight" / "bench")


def test_saving_again_replaces(tmp_path):
    folder = tmp_path / "a" / "b"
    for rate in (100, 200):
        save_baseline(sweep_result(point(2, rate)), "main", folder)
    assert load_baseline("main", folder).points[2].samples_per_s.median == pytest.approx(200, rel=0.02)
    assert [path.name for path in folder.iterdir()] == ["main.json"]
