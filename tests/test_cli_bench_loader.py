"""`preflight bench-loader` from outside: what it writes, compares and keeps when it is interrupted."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from importlib import resources

import jsonschema
import psutil
import pytest
from command import EXAMPLE, PREFLIGHT, ROOT, environment, preflight, wait_until

SCHEMA = json.loads(resources.files("bench").joinpath("bench_loader.schema.json").read_text())
SHORT = ["--workers", "0", "--max-seconds", "1", "--set", "batch_size=2"]
LONG = ["--workers", "0,1", "--max-seconds", "5", "--set", "batch_size=2"]


def document(text):
    found = json.loads(text)
    jsonschema.validate(found, SCHEMA)
    return found


@contextlib.contextmanager
def started(*words, cwd):
    """The command, running; at the end nothing that it started is alive."""
    process = subprocess.Popen(
        [PREFLIGHT, "bench-loader", *words],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    family = []
    try:
        yield process, family
    finally:
        process.kill()
        process.communicate()
        assert psutil.wait_procs(family, timeout=15)[1] == []


def wait_for_a_slice(process, path, family):
    wait_until(lambda: path.exists() or process.poll() is not None, timeout_s=90)
    assert process.poll() is None, process.communicate()
    family += psutil.Process(process.pid).children(recursive=True)


def test_a_baseline_is_saved_compared_and_drawn(tmp_path):
    saved = preflight("bench-loader", EXAMPLE, *SHORT, "--save", "main", "--plot", "sweep.svg", cwd=tmp_path)
    assert saved.returncode == 0, saved.stderr
    assert saved.stderr == "Baseline: .preflight/bench/main.json\nPlot: sweep.svg\n"
    assert "Against" not in saved.stdout
    kept = document((tmp_path / ".preflight/bench/main.json").read_text())
    assert kept["complete"] is True
    assert kept["dataset"] == {
        "frames": 498,
        "root": kept["dataset"]["root"],
        "codebase_version": "v3.0",
        "description": None,
    }
    assert kept["dataset"]["root"].endswith("examples/data/g1")
    assert kept["start_method"] == "forkserver"
    assert "<text" in (tmp_path / "sweep.svg").read_text()
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {str(path) for path in files} == {".preflight/bench/main.json", "sweep.svg"}

    words = ["--compare", "main", "--format", "json", "--output", "now.json"]
    compared = preflight("bench-loader", EXAMPLE, *SHORT, *words, cwd=tmp_path)
    assert (compared.returncode, compared.stderr) == (0, "")
    now = document(compared.stdout)
    assert now == document((tmp_path / "now.json").read_text())
    assert now["comparison"]["comparable"] is True
    assert [one["num_workers"] for one in now["comparison"]["points"]] == [0]

    other = ["--set", "batch_size=3", "--compare", "main"]
    apart = preflight("bench-loader", EXAMPLE, *SHORT, *other, cwd=tmp_path)
    assert apart.returncode == 0, apart.stderr
    assert apart.stdout.endswith(
        "Against the baseline main: not comparable, these differ.\n  batch size: 3 here, 2 there\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plot", "sweep.jpg"], "--plot sweep.jpg: a plot is one of .svg, .png, .pdf"),
        (["--plot", "none/sweep.svg"], "--plot none/sweep.svg cannot be written: No such file or directory"),
        (["--output", "none/b.json"], "--output none/b.json cannot be written: No such file or directory"),
        (["--output", "."], "--output . cannot be written: it is a folder"),
        (["--output", "a.svg", "--plot", "a.svg"], "--output and --plot are the same file, a.svg"),
        (["--save", "a/b"], "'a/b' cannot be a baseline's name"),
        (["--compare", "main"], "unknown baseline 'main'\n  hint: .preflight/bench holds none"),
        (["--output", "/dev/null", "--save", "a", "--compare", "a"], "unknown baseline 'a'"),
    ],
)
def test_what_cannot_be_written_or_read_is_refused_before_measuring(tmp_path, words, said):
    done = preflight("bench-loader", EXAMPLE, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    output = tmp_path / "b.json"
    words = ["--output", "b.json", "--save", "x", "--plot", "a.svg"]
    with started(EXAMPLE, *LONG, *words, cwd=tmp_path) as (process, family):
        wait_for_a_slice(process, output, family)
        assert document(output.read_text())["complete"] is False
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "Partial: the sweep ended before its time" in stdout
    assert "Recommended" not in stdout
    left = document(output.read_text())
    assert left["complete"] is False
    assert left["points"][0]["num_workers"] == 0
    assert os.listdir(tmp_path) == ["b.json"]


def test_a_kill_leaves_valid_json_and_nothing_else(tmp_path):
    output = tmp_path / "b.json"
    with started(EXAMPLE, *LONG, "--output", "b.json", cwd=tmp_path) as (process, family):
        wait_for_a_slice(process, output, family)
        process.kill()
        process.communicate()
    assert document(output.read_text())["complete"] is False
    assert os.listdir(tmp_path) == ["b.json"]


def test_an_interruption_before_the_first_slice_leaves_the_old_file(tmp_path):
    output = tmp_path / "b.json"
    output.write_text("old")
    with started(EXAMPLE, *LONG, "--output", "b.json", "--plot", "a.svg", "--save", "x", cwd=tmp_path) as (process, _):
        # The worker server is started once all words were found to be good.
        wait_until(lambda: psutil.Process(process.pid).children() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert (os.listdir(tmp_path), output.read_text()) == (["b.json"], "old")


def test_a_dataset_that_breaks_keeps_what_was_measured(tmp_path):
    root = tmp_path / "g1"
    shutil.copytree(ROOT / "examples/data/g1", root)
    output = tmp_path / "b.json"
    words = ["--set", f"data.root={root}", "--output", "b.json", "--format", "json"]
    with started(EXAMPLE, *LONG, *words, cwd=tmp_path) as (process, family):
        wait_for_a_slice(process, output, family)
        for video in root.rglob("*.mp4"):
            os.truncate(video, 2000)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 3, stderr
    assert stderr.startswith("preflight: ")
    assert ".mp4" in stderr
    assert document(stdout) == document(output.read_text())
    assert document(stdout)["complete"] is False
    assert sorted(os.listdir(tmp_path)) == ["b.json", "g1"]


def test_the_demand_is_read_from_an_earlier_run(tmp_path):
    folder = tmp_path / "checkpoints" / "demo" / "first"
    folder.mkdir(parents=True)
    efficiency = {"samples_per_sec": 8.0, "time_per_step": 1.0, "data_wait": 0.0}
    values = {f"efficiency/{name}": value for name, value in efficiency.items()}
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 10, **values}) + "\n")
    words = ["--demand", "checkpoints/demo/first", "--format", "json"]
    done = preflight("bench-loader", EXAMPLE, *SHORT, *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = document(done.stdout)
    assert found["demand_samples_per_s"] == 8.0
    assert found["demand_source"] == "measured by the run demo/first in 1 interval at batch size 8"
    assert f"asks for 8 samples/s ({found['demand_source']})" in found["reason"]

    wrong = preflight("bench-loader", EXAMPLE, *SHORT, "--demand", "fast", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--demand fast: this is neither a number nor a folder that exists" in wrong.stderr
