"""`preflight norm-stats` as a user runs it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import EXAMPLE, ROOT, preflight
from test_checks_data import replace_column

from preflight.data.normalize import load
from preflight.runs import load_run

V21 = ROOT / "tests" / "data" / "g1_v21"
DELTA = ("--set", "data.delta_actions=[7, -6, 7, -6]")


def report(tmp_path, *words, code=0):
    done = preflight("norm-stats", EXAMPLE, *words, "--format", "json", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_without_write_it_prints_the_worst_dimensions_and_leaves_nothing(tmp_path):
    done = preflight("norm-stats", EXAMPLE, *DELTA, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("g1: all 498 frames of ")
    assert lines[0].endswith("498 values of each state dimension and 24,900 of each action dimension")
    assert lines[2].split() == ["the", "worst", "dimensions", "mean", "std", "q01", "q99", "min", "max", "normalised"]
    furthest = [abs(float(line.split()[-1])) for line in lines[3:15]]
    assert furthest == sorted(furthest, reverse=True)
    assert lines[15] == "and 40 more"
    assert lines[-2:] == ["assets/g1/g1/norm_stats.json is not there.", "Nothing was written; --write does it."]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("root", [ROOT / "examples" / "data" / "g1", V21])
def test_it_writes_what_the_run_computes_and_the_check_takes_it(tmp_path, root):
    words = ("--set", f"data.root={root}", *DELTA)
    first = report(tmp_path, *words, "--write")
    path = tmp_path / first["path"]
    assert (first["existing"], first["written"], first["kept"]) == (None, True, None)
    assert first["use"] == f"--set data.norm_stats=assets/g1/{root.name}/norm_stats.json"
    assert first["count"] == {"state": 498, "actions": 24900}
    run = load_run(EXAMPLE, assignments=[words[1], DELTA[1]])
    for name, expected in run.dataset().stats.items():
        for field in ("mean", "std", "q01", "q99"):
            np.testing.assert_allclose(getattr(load(path)[name], field), getattr(expected, field), rtol=1e-12)
    assert json.loads(path.read_text())["norm_stats"] == first["norm_stats"]
    assert [file.name for file in path.parent.iterdir()] == ["norm_stats.json"]
    use = first["use"].split()
    checked = preflight("check", EXAMPLE, *words, *use, "--only", "data.norm-stats", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    assert report(tmp_path, *words, *use)["existing"]["differing"] == 0


def test_a_file_that_is_there_is_compared_and_kept(tmp_path):
    place = ("--set", "data.norm_stats=mine/norm_stats.json")
    report(tmp_path, *place, "--write")
    path = tmp_path / "mine" / "norm_stats.json"
    raw = json.loads(path.read_text())
    raw["norm_stats"]["state"]["q99"][3] += 5
    path.write_text(old := json.dumps(raw))
    done = preflight("norm-stats", EXAMPLE, *place, cwd=tmp_path)
    assert "differs in 1 of 52 dimensions, most in the q99 of state[3] (kLeftElbow): " in done.stdout
    assert path.read_text() == old
    done = preflight("norm-stats", EXAMPLE, *place, "--write", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == f"Written: {path}; the old one is {path}.bak"
    assert Path(f"{path}.bak").read_text() == old
    assert "holds the same" in preflight("norm-stats", EXAMPLE, *place, cwd=tmp_path).stdout
    assert sorted(file.name for file in path.parent.iterdir()) == ["norm_stats.json", "norm_stats.json.bak"]


def test_a_damaged_file_is_said_and_replaced(tmp_path):
    path = tmp_path / "norm_stats.json"
    path.write_text("{")
    place = ("--set", f"data.norm_stats={path}")
    done = preflight("norm-stats", EXAMPLE, *place, "--write", cwd=tmp_path)
    assert done.returncode == 0
    assert f"The file that is there cannot be compared: {path}, line 1" in done.stdout
    assert load(path).keys() == {"state", "actions"}


def test_a_dimension_that_never_moves_is_flagged(tmp_path):
    root = Path(shutil.copytree(V21, tmp_path / "g1"))
    for file in sorted((root / "data").rglob("*.parquet")):
        only = tmp_path / "one"
        (only / "data").mkdir(parents=True, exist_ok=True)
        shutil.move(file, only / "data" / file.name)
        for key in ("observation.state", "action"):
            replace_column(only, key, lambda rows: [row.__setitem__(2, 0.5) for row in rows])
        shutil.move(only / "data" / file.name, file)
    done = preflight("norm-stats", EXAMPLE, "--set", f"data.root={root}", cwd=tmp_path)
    assert "and 40 more; constant: state[2] (kLeftShoulderYaw), actions[2] (kLeftShoulderYaw)" in done.stdout


def test_a_nan_is_named_and_nothing_is_written(tmp_path):
    root = Path(shutil.copytree(V21, tmp_path / "g1"))
    replace_column(root, "action", lambda rows: rows[7].__setitem__(3, float("nan")))
    done = preflight("norm-stats", EXAMPLE, "--set", f"data.root={root}", "--write", cwd=tmp_path)
    path = root / "data" / "chunk-000" / "episode_000000.parquet"
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(
        f"preflight: {path}: action[3] (kLeftElbow) is NaN or inf in 1 frame(s), the first is frame 7 of episode 0\n"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["g1"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--format", "yaml"], 2, "unknown value for --format"),
        (["--set", "data.root=nowhere"], 3, "no such folder"),
        (["--set", "data.actions=actions"], 3, "Did you mean action?"),
        (["--set", "data.delta_actions=[27]"], 2, "data.delta_actions covers 27 dimensions"),
        (["--set", "data.norm_stats=/proc/x/norm_stats.json", "--write"], 3, "/proc/x/norm_stats.json"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tmp_path, words, code, said):
    done = preflight("norm-stats", EXAMPLE, *words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_report_may_go_to_a_file(tmp_path):
    done = preflight("norm-stats", EXAMPLE, "--format", "json", "--output", "report.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads((tmp_path / "report.json").read_text())["schema_version"] == 1
