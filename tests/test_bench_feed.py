"""`make bench-feed`: its rounds, its ratios, the decoder's limit, and what becomes of a row that cannot be measured."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openpi_fork
import psutil
import pytest
from command import ROOT, environment

from bench.decode_limit import DecodeLimit, OpenVideo, camera_frames
from bench.feed_loaders import ROWS
from bench.feed_openpi import RobotInputs
from bench.feed_rounds import Feed, RowSlices, require_rows, run_slice, turn_order
from bench.feed_slice import Slice
from bench.feed_table import fastest_lerobot, feed_json, figures, render_feed
from bench.statistics import median_ratio, paired_ratio
from preflight.data.demo_writer import FPS
from preflight.data.resize import resize_with_pad
from preflight.errors import DataError, UsageError

V30, V21 = ROOT / "examples/data/g1", ROOT / "tests/data/g1_v21"
BATCH = 8


@pytest.mark.parametrize("root", [V30, V21], ids=["v3.0", "v2.1"])
def test_the_limit_decodes_the_frame_of_that_time(root):
    (camera,) = camera_frames(root)
    assert len(camera.file) == len(camera.seconds) == 498
    videos = [OpenVideo(path) for path in camera.paths]
    chosen = np.random.default_rng(0).permutation(498)[:40].tolist()
    for index in [0, 1, *chosen, 497]:
        picture = videos[camera.file[index]].decode(float(camera.seconds[index]))
        assert abs(picture.pts * picture.time_base - camera.seconds[index]) < 0.5e-3 / FPS
        assert (picture.width, picture.height) == (640, 480)
    assert videos[0].decode(1000.0) is None


def test_a_dataset_without_videos_has_no_limit(tmp_path):
    from bench.data_scale import write_dataset
    from bench.synthetic_dataset import write_dataset as write_synthetic

    def still(count):
        return (np.zeros((count * 4, 14), np.float32),) * 2

    write_synthetic(tmp_path / "a", "v3.0", 2, frames=4, motion=still)
    with pytest.raises(DataError, match="has no videos: there is nothing to decode"):
        camera_frames(tmp_path / "a")
    write_dataset(tmp_path / "b", "v2.1", 2)
    assert [len(camera.paths) for camera in camera_frames(tmp_path / "b")] == [2]


def test_the_limits_processes_take_turns_and_end_with_it():
    with DecodeLimit(camera_frames(V30), batch_size=2, num_workers=2, seed=0) as loader:
        pids = loader.worker_pids()
        assert sorted(pids) == sorted(child.pid for child in multiprocessing.active_children())
        batches = iter(loader)
        assert [next(batches) for _ in range(5)] == [b"\0"] * 5
        psutil.Process(pids[0]).kill()
        with pytest.raises((EOFError, OSError)):  # noqa: PT012 - batches that it had ready come first
            for _ in range(20):
                next(batches)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_every_round_begins_with_another_row_and_visits_all():
    orders = [turn_order(4, index) for index in range(5)]
    assert [order[0] for order in orders] == [0, 1, 2, 3, 0]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_an_unknown_row_is_answered_with_the_near_one():
    assert [row.key for row in require_rows(["limit", "ours"])] == ["ours", "limit"]
    assert require_rows(None) == ROWS
    with pytest.raises(UsageError, match="unknown row 'limits'") as caught:
        require_rows(["limits"])
    assert "limit" in caught.value.hint


def test_a_ratio_paired_by_round_does_not_see_the_machines_drift():
    rng = np.random.default_rng(0)
    drift = (1.0, 0.4, 2.5, 0.7, 1.6)  # what the machine does to both in a round
    old = [100 * factor * rng.lognormal(0, 0.01, 20) for factor in drift]
    new = [300 * factor * rng.lognormal(0, 0.01, 20) for factor in drift]
    paired, apart = paired_ratio(new, old), median_ratio(new, old)
    assert paired.lo < 3 < paired.hi
    assert paired.relative_half_width < 0.02
    assert apart.relative_half_width > 0.2
    few = paired_ratio([[300.0, 330.0]], [[100.0, 110.0]])
    assert (few.lo, few.hi) == (300 / 110, 330 / 100)
    with pytest.raises(ValueError, match="at least one round"):
        paired_ratio([[1.0]], [[]])


def request(row, root=V30, **changes):
    sizes = {"batch_size": 2, "num_workers": 1, "seed": 0, "seconds": 0.2}
    return {"row": row, "root": str(root), **sizes, **changes}


def test_a_slice_runs_apart_and_leaves_nothing(tmp_path):
    places = {"run_file": "unused.toml", "folder": str(tmp_path)}
    found = run_slice(request("limit", **places), tmp_path, timeout_s=60)
    assert found.refused is None
    assert len(found.intervals_s) >= 3
    assert found.first_batch_s > 0
    assert found.cpu_s > 0
    assert 5 < found.pss_mib < 500

    late = run_slice(request("limit", **places), tmp_path, timeout_s=0.05)
    assert late == Slice(refused="gave no result within 0 s")
    crashed = run_slice(request("limit", folder=str(tmp_path)), tmp_path, timeout_s=60)
    assert crashed.refused == "its process ended with 1: KeyError: 'run_file'"
    missing = run_slice(request("limit", root=tmp_path / "no", **places), tmp_path, timeout_s=60)
    assert str(tmp_path / "no") in missing.refused
    ours = (process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"]))
    assert list(ours) == []


def slices(rate, *, rounds=3, workers=2, first=1.0, pss=50.0):
    """Slices in which a turn of all workers takes the same time, slower by half in the second round."""
    turn = BATCH * workers / rate
    found = []
    for number in range(rounds):
        slow = 1.5 if number == 1 else 1.0
        intervals = (0.9 * turn * slow, 0.1 * turn * slow) * 40
        cpu = 0.002 * BATCH * len(intervals)
        found.append(Slice(first_batch_s=first, intervals_s=intervals, cpu_s=cpu, pss_mib=pss + number))
    return tuple(found)


def feed(**rows):
    """A result of the named rows: a rate, or why there is none."""
    by_key = {row.key: row for row in ROWS}
    made = {
        key.replace("_", "-"): (Slice(refused=value),) if isinstance(value, str) else slices(value)
        for key, value in rows.items()
    }
    return Feed(
        root=Path("/data/g1"),
        frames=498,
        cameras=(("cam_high", (480, 640, 3)),),
        codec="libdav1d",
        num_workers=2,
        batch_size=BATCH,
        resident_share=1.0,
        rows=tuple(RowSlices(row=by_key[key], slices=found) for key, found in made.items()),
    )


def test_figures_are_those_that_were_put_in():
    result = feed(ours=800.0, lerobot="its library is missing", lerobot_pyav=100.0, lerobot_spawn=80.0, limit=1000.0)
    assert fastest_lerobot(result) == "lerobot-pyav"
    found = figures(result)
    assert found.keys() == {"ours", "lerobot-pyav", "lerobot-spawn", "limit"}
    ours = found["ours"]
    assert ours.samples_per_s.median == pytest.approx(800, rel=1e-6)
    assert ours.to_lerobot.median == pytest.approx(8, rel=1e-6)
    # The slow round was slow for all: the ratio knows nothing of it.
    assert (ours.to_limit.lo, ours.to_limit.hi) == (pytest.approx(0.8), pytest.approx(0.8))
    assert (ours.first_batch_s, ours.pss_mib, ours.to_openpi) == (1.0, 52.0, None)
    assert ours.cpu_s_per_sample == pytest.approx(0.002)
    assert found["lerobot-pyav"].to_lerobot is None
    assert found["limit"].to_limit is None


def test_the_table_says_what_it_compares_and_what_is_missing():
    text = render_feed(feed(ours=800.0, lerobot_pyav=100.0, openpi="not installed", limit=1000.0))
    assert text.startswith("g1: 498 frames, cam_high 480x640 (libdav1d), 100% in the page cache; 2 workers, batch 8\n")
    assert re.search(r"^ours, decoded +800 \[\d+, \d+\] +8\.00 \[8\.00, 8\.00\] +0\.80 \[0\.80, 0\.80\]", text, re.M)
    assert re.search(r"^LeRobot, fork, pyav\* .* - +0\.10 \[0\.10, 0\.10\] +1\.0 +52 +2\.00$", text, re.M)
    assert re.search(r"^openpi +not installed$", text, re.M)
    assert "x openpi" not in text
    assert "x openpi: ours, decoded 8.00" in render_feed(feed(ours=800.0, openpi=100.0))
    assert "*" not in render_feed(feed(ours=800.0))
    assert max(map(len, text.splitlines())) <= 112


def test_the_json_holds_every_row_with_its_raw_intervals():
    document = json.loads(json.dumps(feed_json([feed(ours=800.0, openpi="not installed")])))
    (dataset,) = document["datasets"]
    ours, openpi = dataset["rows"]
    assert openpi == {"row": "openpi", "title": "openpi", "refused": "not installed"}
    assert ours["samples_per_s"]["median"] == pytest.approx(800)
    assert ours["ratio_to_limit"] is None
    assert [len(one) for one in ours["batch_intervals_s"]] == [80, 80, 80]
    assert document["environment"]["packages"]["av"] == version("av")
    assert feed(ours=800.0, openpi="not installed").own_measured
    assert not feed(ours="no such key", openpi=3.0).own_measured


def test_openpis_inputs_are_pictures_in_its_slots():
    picture = np.random.default_rng(0).random((3, 6, 8), dtype=np.float32)
    sample = RobotInputs(("base", "wrist"))({"base": picture, "state": [1.0], "actions": [[2.0]]})
    assert sample["image"]["base"].shape == (6, 8, 3)
    assert np.array_equal(sample["image"]["base"][..., 0], (255 * picture[0]).astype(np.uint8))
    assert not sample["image"]["wrist"].any()
    assert sample["image_mask"] == {"base": True, "wrist": False}
    assert resize_with_pad(sample["image"]["base"]).shape == (224, 224, 3)


def bench_feed(*words, cwd):
    command = [sys.executable, "-m", "bench.feed", "--no-demo", *words]
    return subprocess.run(
        command, cwd=cwd, env={**environment(), "TMPDIR": str(cwd)}, capture_output=True, text=True, timeout=250
    )


def test_side_by_side_on_real_data(tmp_path):
    readable = V21 if version("lerobot").startswith("0.1.") else V30
    rows = ["--only", "ours", "--only", "lerobot-pyav", "--only", "limit"]
    words = [*rows, "--rounds", "1", "--max-seconds", "0.5", "--workers", "1", "--batch-size", "2", "--format", "json"]
    done = bench_feed("--dataset", os.path.relpath(readable, tmp_path), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (dataset,) = json.loads(done.stdout)["datasets"]
    assert [(row["row"], row["refused"]) for row in dataset["rows"]] == [
        ("ours", None),
        ("lerobot-pyav", None),
        ("limit", None),
    ]
    assert all(row["samples_per_s"]["median"] > 0 and row["pss_per_worker_mib"] > 5 for row in dataset["rows"])
    assert dataset["compared_with"] == "lerobot-pyav"
    assert dataset["codec"] == "libdav1d"
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        "ours, decoded",
        "LeRobot, fork, pyav",
        "bare random decoding",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.openpi
@pytest.mark.skipif(not openpi_fork.is_installed(), reason="openpi is not installed: make test-openpi-pins OPENPI=DIR")
def test_openpis_samples_come_from_its_loader_and_from_ours(tmp_path):
    rows = ["--only", "openpi", "--only", "ours-openpi"]
    words = [*rows, "--rounds", "1", "--max-seconds", "1", "--workers", "1", "--batch-size", "2", "--format", "json"]
    done = bench_feed("--dataset", str(V21), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs, ours = json.loads(done.stdout)["datasets"][0]["rows"]
    assert (theirs["refused"], ours["refused"]) == (None, None)
    assert ours["samples_per_s"]["median"] > 0 < theirs["samples_per_s"]["median"]
    assert ours["ratio_to_openpi"]["median"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "theirs"], "unknown row 'theirs'"),
        (["--workers", "0"], "--workers must be more than 0, not 0"),
        (["--dataset", "nowhere", "--only", "limit"], "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(tmp_path, words, said):
    done = bench_feed(*words, cwd=tmp_path)
    assert done.returncode in (2, 3)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (done.stdout, list(tmp_path.iterdir())) == ("", [])
