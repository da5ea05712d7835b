"""`data.timestamps`: silent on real data and on what float32 rounds, and alone with a frame that is out of place."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from healthy import EXAMPLE, context, spoken

from checks import data, data_timestamps
from preflight.checklist import run_checks
from preflight.data.episodes import read_episodes
from preflight.data.metadata import read_info
from preflight.data.timestamps import check_timestamps

V30 = Path(EXAMPLE).parent / "data" / "g1"
V21 = Path(__file__).parent / "data" / "g1_v21"
# data.sample decodes videos by these timestamps; it comes after this one.
CHECKS = (*(c for c in data.CHECKS if c.id not in ("data.sample", "data.timestamps")), data_timestamps.CHECK)


def run_data(root):
    return {r.check.id: r for r in run_checks(CHECKS, context(f"data.root={root}"), max_parallel=1)}


def the_one_that_speaks(root):
    results = run_data(root)
    assert spoken(results) == {"data.timestamps"}, {i: results[i].outcome.summary for i in spoken(results)}
    assert results["data.timestamps"].status == "fail"
    return results["data.timestamps"].outcome


def alone(root, **facts):
    """What this check says of a dataset, whatever others have to say."""
    checked = context(f"data.root={root}")
    checked.run.facts = dataclasses.replace(checked.run.facts, **facts)
    return run_checks([dataclasses.replace(data_timestamps.CHECK, requires=())], checked)[0].outcome


@pytest.fixture(params=[V21, V30], ids=["v21", "v30"])
def root(request, tmp_path):
    return shutil.copytree(request.param, tmp_path / "g1")


@pytest.fixture
def v21(tmp_path):
    return shutil.copytree(V21, tmp_path / "g1")


def last_file(root):
    return sorted((root / "data").rglob("*.parquet"))[-1]


def row_of(root, frame):
    """Row of a frame of episode 1 in the last parquet file."""
    return frame if "chunk-000/episode" in str(last_file(root)) else 221 + frame


def replace(path, key, values):
    table = pq.read_table(path)
    values = values if isinstance(values, pa.Array) else pa.array(values, table.schema.field(key).type)
    pq.write_table(table.set_column(table.schema.get_field_index(key), key, values), path)


def edit(path, key, change):
    values = pq.read_table(path, columns=[key])[key].to_pylist()
    change(values)
    replace(path, key, values)


def put(frame, value, root):
    return lambda values: values.__setitem__(row_of(root, frame), value)


def test_real_data_are_silent(root):
    results = run_data(root)
    assert spoken(results) == set()
    files = 1 if "file-000" in str(last_file(root)) else 2
    assert results["data.timestamps"].outcome.summary == (
        f"498 timestamps in {files} file(s) lie on the grid of 30 fps, 4e-07 s off at most; frame_index, index and "
        "episode_index fit the 2 episodes"
    )
    assert results["data.timestamps"].outcome.measured["frames"] == 498


def test_without_a_dataset_it_says_so():
    checked = context()
    checked.run.source = lambda: None
    outcome = data_timestamps.CHECK.run(checked)
    assert (outcome.status, outcome.summary) == ("pass", "samples are made up without a dataset: it has no timestamps")


@pytest.mark.parametrize("offset", [0.00011, -0.00011, 0.02])
def test_a_timestamp_off_the_grid_trips_it_alone(root, offset):
    edit(last_file(root), "timestamp", put(120, 4.0 + offset, root))
    outcome = the_one_that_speaks(root)
    assert outcome.summary == (
        f"{last_file(root)}, episode 1, frame 120: timestamp is {4 + offset:.6f} s, expected 4.000000 s (frame_index / "
        f"fps, {offset:+.6f} s off); in all 1 frame(s) of 1 of 2 episode(s)"
    )
    assert outcome.expected == {"timestamp": "frame_index / fps", "fps": 30.0, "tolerance_s": 1e-4}
    assert "tolerance_s" in outcome.hint.text


def test_what_is_within_the_tolerance_is_silent(root):
    edit(last_file(root), "timestamp", put(120, 4.00009, root))
    assert spoken(run_data(root)) == set()


def test_neighbours_that_lerobot_finds_too_far_apart_trip_it_alone(root):
    """Each within 1e-4 s of the grid, and 1.8e-4 s too far apart: LeRobot's check_timestamps_sync."""
    edit(last_file(root), "timestamp", put(120, 4 - 0.00009, root))
    edit(last_file(root), "timestamp", put(121, 121 / 30 + 0.00009, root))
    outcome = the_one_that_speaks(root)
    said = "timestamp is 0.033513 s after the one before it, expected 0.033333 s (1 / fps); in all 1 frame(s)"
    assert f", episode 1, frame 121: {said}" in outcome.summary


def test_timestamps_that_do_not_rise_or_do_not_start_at_zero_trip_it_alone(root):
    edit(last_file(root), "timestamp", put(120, 119 / 30, root))
    assert ", frame 120: timestamp is 3.966667 s after 3.966667 s: it does not rise; in all 1 frame(s)" in (
        the_one_that_speaks(root).summary
    )
    first = row_of(root, 0)
    edit(last_file(root), "timestamp", lambda v: v.__setitem__(slice(first, None), [2.5 + i / 30 for i in range(277)]))
    assert the_one_that_speaks(root).summary.endswith(
        ", episode 1, frame 0: the episode's timestamps start at 2.500000 s, expected 0 (+2.500000 s off); in all 277 "
        "frame(s) of 1 of 2 episode(s)"
    )


@pytest.mark.parametrize(("value", "said"), [(np.nan, "is nan"), (np.inf, "is inf"), (None, "is missing")])
def test_no_number_trips_it(root, value, said):
    edit(last_file(root), "timestamp", put(5, value, root))
    outcome = alone(root)
    assert outcome.summary.endswith(f", episode 1, frame 5: timestamp {said}; in all 1 frame(s) of 1 of 2 episode(s)")
    json.dumps(outcome.measured, allow_nan=False)


def test_another_rate_is_named(root):
    edit(last_file(root), "timestamp", lambda v: v.__setitem__(slice(-277, None), [i / 25 for i in range(277)]))
    assert (
        ", episode 1, frame 1: timestamp is 0.040000 s, expected 0.033333 s (frame_index / fps, +0.006667 s off); the "
        "episode's frames are 0.0400 s apart, as at 25 fps, not 30; in all 276 frame(s)"
    ) in the_one_that_speaks(root).summary


def test_wrong_episodes_of_several_files_are_counted(v21):
    for path in sorted((v21 / "data").rglob("*.parquet")):
        edit(path, "timestamp", lambda v: v.__setitem__(slice(10, 13), [9.0, 9.1, 9.2]))
    edit(path, "frame_index", lambda v: v.__setitem__(3, 33))
    outcome = alone(v21)
    assert outcome.summary.endswith("; in all 6 frame(s) of 2 of 2 episode(s); wrong as well: frame_index")
    assert outcome.measured["wrong_frames"] == {"timestamp": 6, "frame_index": 1}
    assert [line.partition("chunk-000/")[2].partition(":")[0] for line in outcome.evidence] == [
        "episode_000000.parquet, episode 0, frame 10",
        "episode_000001.parquet, episode 1, frame 10",
        "episode_000001.parquet, episode 1, frame 3",
    ]


@pytest.mark.parametrize(
    ("key", "value", "expected"), [("frame_index", 7, 120), ("index", 7, 341), ("episode_index", 0, 1)]
)
def test_a_wrong_number_is_named(root, key, value, expected):
    edit(last_file(root), key, put(120, value, root))
    outcome = alone(root)
    assert outcome.summary == (
        f"{last_file(root)}, episode 1, frame 120: {key} is {value}, expected {expected}; in all 1 frame(s) of 1 of 2 "
        "episode(s)"
    )
    assert "number the frames anew" in outcome.hint.text


def test_a_wrong_frame_index_trips_it_alone(root):
    edit(last_file(root), "frame_index", put(120, 121, root))
    assert ", episode 1, frame 120: frame_index is 121, expected 120; " in the_one_that_speaks(root).summary


def test_files_that_cannot_be_compared_are_named(v21):
    first, second = sorted((v21 / "data").rglob("*.parquet"))
    table = pq.read_table(second)
    for change, said in (
        (lambda t: t.drop_columns("frame_index"), f"{second}: no column 'frame_index'"),
        (lambda t: t.slice(1), f"{second} has 276 rows, but its 1 episode(s) have 277 frames"),
        (lambda t: pa.concat_tables([t, t]), f"{second} has 554 rows, expected at most 277"),
        (lambda t: t.slice(0, 0), f"{second} has 0 rows, but its 1 episode(s) have 277 frames"),
    ):
        pq.write_table(change(table), second)
        assert alone(v21).summary == said
    pq.write_table(table, second)
    milliseconds = pa.array([i * 33 for i in range(277)])
    replace(second, "timestamp", milliseconds)
    assert alone(v21).summary == f"{second}: column 'timestamp' holds int64, not seconds as floats"
    pq.write_table(table, second)
    replace(second, "index", pa.array([float(i) for i in range(221, 498)]))
    assert alone(v21).summary == f"{second}: column 'index' holds double, not integers"
    second.write_bytes(second.read_bytes()[:3000])
    first.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    outcome = alone(v21)
    assert outcome.summary.startswith(f"{first} is a Git LFS pointer")
    assert outcome.summary.endswith("; so it is with 2 files")
    assert f"{second} cannot be read as parquet (3000 bytes)" in outcome.evidence[1]


@pytest.mark.parametrize("kind", [pa.float64(), pa.list_(pa.float32()), pa.list_(pa.float32(), 1)])
def test_other_ways_to_hold_the_same_are_silent(v21, kind):
    path = last_file(v21)
    times = [i / 30 for i in range(277)]
    replace(path, "timestamp", pa.array([[t] for t in times] if pa.types.is_nested(kind) else times, kind))
    replace(path, "index", pa.array(range(221, 498), pa.int32()))
    assert alone(v21).status == "pass"


def long_episode(v21, frames, kind=np.float32):
    """One episode of so many frames, its timestamps rounded to a dtype."""
    path = last_file(v21).with_name("episode_000000.parquet")
    last_file(v21).unlink()
    index = pa.array(np.arange(frames))
    times = pa.array((np.arange(frames) / 30).astype(kind))
    episode = pa.array(np.zeros(frames, np.int64))
    names = ("timestamp", "frame_index", "index", "episode_index")
    pq.write_table(pa.table(dict(zip(names, (times, index, index, episode), strict=True))), path)
    (v21 / "meta" / "episodes.jsonl").write_text(json.dumps({"episode_index": 0, "tasks": [], "length": frames}))
    info = json.loads((v21 / "meta" / "info.json").read_text())
    info.update(total_episodes=1, total_frames=frames)
    (v21 / "meta" / "info.json").write_text(json.dumps(info))
    return path


def test_what_float32_rounds_is_no_fault(v21):
    path = long_episode(v21, 60_000)  # 33 minutes
    assert alone(v21).status == "pass"
    # LeRobot before 0.4 compares neighbours, and has no other numbers to do it with.
    outcome = alone(v21, formats=("v2.0", "v2.1"))
    assert outcome.status == "warn"
    assert (
        "because float32 holds no nearer number so long into an episode; LeRobot before 0.4 refuses" in outcome.summary
    )
    edit(path, "timestamp", lambda v: v.__setitem__(50_000, 50_000 / 30 + 0.0005))
    assert ", episode 0, frame 50000: timestamp is 1666.667" in alone(v21).summary


def test_float32_that_misses_the_videos_frames_is_a_warning(v21):
    long_episode(v21, 70_000)  # 39 minutes
    outcome = alone(v21)
    assert outcome.status == "warn"
    # Of the timestamps from 2048 s on, in steps of 2.4e-4 s, those that lie more than 1e-4 s from a step.
    wanted = np.arange(70_000) / 30
    assert outcome.measured["rounded_frames"] == (np.abs(wanted.astype(np.float32) - wanted) > 1e-4).sum() > 0
    assert outcome.summary.startswith(f"{outcome.measured['rounded_frames']:,} timestamps lie more than 1e-4 s off")


def test_float64_is_held_to_the_tolerance_in_long_episodes(v21):
    path = long_episode(v21, 70_000, np.float64)
    assert alone(v21).status == "pass"
    edit(path, "timestamp", lambda v: v.__setitem__(69_000, 2300.00011))
    assert "timestamp is 2300.000110 s, expected 2300.000000 s" in alone(v21).summary


def test_the_verdict_on_neighbours_is_lerobots(v21):
    """LeRobot 0.1 to 0.3 demands abs(diff - 1 / fps) <= 1e-4; what it refuses is refused here."""
    info = read_info(v21)
    episodes = read_episodes(info)
    draw = np.random.default_rng(0)
    path = last_file(v21)
    refused = 0
    for _ in range(60):
        times = (
            np.arange(277) / 30 + draw.choice([0, 1], 277, p=[0.99, 0.01]) * draw.uniform(-3e-4, 3e-4, 277)
        ).astype(np.float32)
        replace(path, "timestamp", pa.array(times))
        theirs = bool((np.abs(np.diff(times) - 1.0 / 30) <= 1e-4).all())
        ours = not any(report.faults for report in check_timestamps(info, episodes, threads=1))
        assert theirs or not ours
        refused += not theirs
    assert 10 < refused < 60


def test_progress_is_told(v21):
    info, told = read_info(v21), []
    check_timestamps(info, read_episodes(info), threads=2, progress=lambda *done: told.append(done))
    assert told == [(1, 2), (2, 2)]


def without_cameras(root):
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"] = {key: feature for key, feature in info["features"].items() if feature["dtype"] != "video"}
    path.write_text(json.dumps(info))


def test_where_nothing_is_sought_by_them_wrong_timestamps_are_a_warning(root):
    without_cameras(root)
    assert alone(root).status == "pass"
    edit(last_file(root), "timestamp", put(120, 4.02, root))
    outcome = alone(root)
    assert outcome.status == "warn"
    assert ", episode 1, frame 120: timestamp is 4.020000 s, expected 4.000000 s" in outcome.summary
    assert outcome.summary.endswith("; no camera's frame is sought by them here")
    assert "video" not in outcome.hint.text
    assert alone(root, stack="openpi").status == "fail"  # its LeRobot compares them when it opens the dataset
    edit(last_file(root), "index", put(130, 7, root))
    outcome = alone(root)
    assert outcome.status == "fail"
    assert ", episode 1, frame 130: index is 7" in outcome.summary
    assert "number the frames anew" in outcome.hint.text
