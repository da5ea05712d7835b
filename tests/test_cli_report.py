"""`preflight report` as a user runs it."""

import json
import os

import jsonschema
import pytest
from command import preflight
from run_folder import run_folder

from preflight.errors import UsageError
from preflight.report.run_document import run_schema
from preflight.report.run_find import require_run_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run_folder(tmp_path_factory.mktemp("cli"))


def test_the_page_goes_into_the_runs_folder(folder):
    before = sorted(path.name for path in folder.iterdir())
    done = preflight("report", str(folder), cwd=folder.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Report: {folder / 'report.html'}\n"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*before, "report.html"])
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_json_goes_to_stdout_and_is_the_schemas(folder):
    done = preflight("report", str(folder), "--format", "json", cwd=folder.parent)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    jsonschema.validate(document, run_schema())
    assert document["verdict"]["state"] == "completed"


@pytest.mark.parametrize("format_", ["html", "json"])
def test_output_names_another_file(folder, tmp_path, format_):
    done = preflight("report", str(folder), "--format", format_, "--output", "out.txt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("Report: out.txt\n" if format_ == "html" else "")
    assert (tmp_path / "out.txt").read_text()[0] == ("<" if format_ == "html" else "{")
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere does not exist\n  hint: a run folder is <checkpoint_base_dir>/<config>/<exp_name>"),
        (["{parent}"], "{parent} is no run folder\n  hint: run folders near it: preflight report {folder}"),
        (["{folder}", "--format", "pdf"], "unknown value for --format 'pdf'; did you mean"),
        (["{folder}", "--output", "{folder}"], "it is a folder"),
        (["{folder}", "--output", "nowhere/report.html"], "No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(folder, tmp_path, words, said):
    names = {"folder": folder, "parent": folder.parent}
    done = preflight("report", *(word.format(**names) for word in words), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said.format(**names).partition("; did")[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("near", ["y", "../pi0_lighter_cup_dem/x", "x/59", "x/config.json", "x/camera_views"])
def test_the_nearest_run_is_named(folder, near):
    with pytest.raises(UsageError) as refused:
        require_run_folder(folder.parent / near)
    assert str(folder) in os.path.realpath(refused.value.hint.split()[-1])
