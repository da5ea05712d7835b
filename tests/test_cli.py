"""The command line from outside: words, exit codes, outputs, signals."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import jsonschema
import pytest
from command import EXAMPLE, PREFLIGHT, ROOT, TINY, environment, interrupt_when, preflight

from preflight.report.as_json import check_schema

SOUND = ["num_train_steps=1245", "lr_schedule.decay_steps=1245", "save_interval=415", "keep_period=415"]
ALONE = ["--set", "num_workers=0", "--set", "wandb_enabled=false"]  # no process but the command's
SOUND = [word for assignment in SOUND for word in ("--set", assignment)]


def modules_loaded_by(*words):
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]\nfrom preflight.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('LOADED', *sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment())
    return set(done.stderr.rpartition("LOADED")[2].split())


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["list-checks"],
        ["list-configs"],
        ["explain", "grad.has-aux"],
        ["check", EXAMPLE, "--level", "quick"],
    ],
)
def test_what_must_be_fast_imports_nothing_heavy(words):
    loaded = modules_loaded_by(*words)
    assert "typer" in loaded
    assert loaded.isdisjoint({"jax", "flax", "torch", "lerobot", "datasets", "wandb", "orbax", "pandas"})


def test_help_names_every_command(tmp_path):
    text = preflight("--help", cwd=tmp_path).stdout
    for command in (
        "check",
        "bench-loader",
        "train",
        "list-configs",
        "list-checks",
        "explain",
        "cache",
        "norm-stats",
        "demo-data",
        "env",
    ):
        assert re.search(rf"^  {command} ", text, re.MULTILINE), command


def test_the_version_is_the_distributions(tmp_path):
    from importlib.metadata import version

    assert preflight("--version", cwd=tmp_path).stdout == f"preflight {version('robot-preflight')}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "pi0_lighter_cup_dem"], "did you mean 'pi0_lighter_cup_demo'?"),
        (["check", "--stack", "opnpi"], "did you mean 'openpi'?\n  hint: valid: auto, native, openpi"),
        (["check", "--set", "bach_size=3"], "did you mean 'batch_size'?"),
        (["check", "--only", "grad.has-ax"], "--only grad.has-ax matches no check\n  hint: Did you mean grad.has-aux?"),
        (["check", "--ignore", "config.epochs"], "--ignore config.epochs gives no reason"),
        (["check", "--level", "quck"], "unknown level 'quck'"),
        (["check", "--format", "jsn"], "unknown value for --format 'jsn'"),
        (["check", "--target", "h1000"], "Unknown GPU 'h1000'"),
        (["check", "--output", "/nowhere/x", "--level", "quick"], "--output /nowhere/x cannot be written"),
        (["check", "none.toml"], "none.toml does not exist"),
        (["chek"], "No such command 'chek'"),
        (["check", "--nope"], "No such option"),
        (["explain", "grad.has_aux"], "Did you mean grad.has-aux?"),
        (["bench-loader", "--workers", "2,x"], "'x'"),
        (["bench-loader", "--workers", "-1"], "-1"),
        (["bench-loader", "--workers", "1000"], "1000"),
        (["bench-loader", "--workers", "2,2"], "2"),
        (["bench-loader", "--max-seconds", "0"], "--max-seconds must be more than 0"),
        (["bench-loader", EXAMPLE, "--set", "batch_size=600"], "600"),
        (["train", "--resume"], "--resume needs --exp-name"),
        (["train", "--resume", "--exp-name", "x"], "nothing to resume"),
        (["train", "--exp-name", "../x"], "is not a plain folder name"),
        (["train", "--resume", "--overwrite", "--exp-name", "x"], "contradict"),
        (["demo-data", "--output", "x", "--resolution", "480"], "is not HEIGHTxWIDTH"),
        (["demo-data", "--output", "x", "--resolution", "479x640"], "must be even"),
        (["demo-data", "--output", "x", "--episodes", "0"], "--episodes must be at least 1"),
    ],
)
def test_a_wrong_word_exits_2_with_a_sentence(tmp_path, words, said):
    done = preflight(*words, cwd=tmp_path)
    assert said in done.stderr
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not any(tmp_path.iterdir())


def test_broken_toml_names_file_and_line(tmp_path):
    (tmp_path / "run.toml").write_text("batch_size = 8\nbatch_size = ?\n")
    done = preflight("check", "run.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "preflight: run.toml is not valid TOML: Invalid value (at line 2, column 14)\n"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "is empty"),
        (lambda folder: folder.write_text("x"), "is a file"),
        (lambda folder: (folder / "meta").mkdir(parents=True), "info.json"),
    ],
)
def test_a_missing_dataset_is_not_cleared(tmp_path, make, said):
    make(tmp_path / "d")
    done = preflight("check", EXAMPLE, "--set", "data.root=d", "--only", "data.*", cwd=tmp_path)
    assert done.returncode == 3
    assert said in re.sub(r"\s+", " ", done.stdout)
    assert "blocked by data.present" in done.stdout
    assert "Verdict: NOT CLEARED" in done.stdout
    assert "Traceback" not in done.stderr


def test_without_its_dataset_the_loader_is_not_measured(tmp_path):
    bench = preflight("bench-loader", EXAMPLE, "--set", "data.root=d", cwd=tmp_path)
    assert (bench.returncode, bench.stdout) == (3, "")
    assert "no such folder" in bench.stderr
    assert "Traceback" not in bench.stderr


def test_exit_codes_of_a_verdict(tmp_path):
    quick = ["check", EXAMPLE, "--level", "quick", "--format", "short"]
    warned = preflight(*quick, cwd=tmp_path)  # less than one pass over the data
    assert (warned.returncode, "config.epochs" in warned.stdout) == (0, True)
    assert preflight(*quick, "--fail-on", "warn", cwd=tmp_path).returncode == 4
    assert preflight(*quick, "--fail-on", "warn", *SOUND, cwd=tmp_path).returncode == 0
    ignored = preflight(*quick, "--fail-on", "warn", "--ignore", "config.epochs=a smoke test", cwd=tmp_path)
    assert ignored.returncode == 0
    assert "a smoke test" in ignored.stdout
    (tmp_path / "preflight.toml").write_text("[expect]\nnum_workers = 8\n[ignore]\n'config.epochs' = 'on purpose'\n")
    expected = preflight(*quick, cwd=tmp_path)
    assert expected.returncode == 3
    assert "num_workers" in preflight("check", EXAMPLE, "--level", "quick", cwd=tmp_path).stdout


def test_json_is_one_object_on_stdout_and_valid(tmp_path):
    done = preflight("check", EXAMPLE, "--level", "quick", "--format", "json", *SOUND, cwd=tmp_path)
    document = json.loads(done.stdout)
    jsonschema.validate(document, check_schema())
    assert (document["config"], document["stack"], document["verdict"]) == ("g1", "native", "cleared")
    assert document["level"] == "quick"
    assert {"env", "config", "data", "storage", "tracking"} >= {check["category"] for check in document["checks"]}
    to_file = preflight("check", EXAMPLE, "--level", "quick", "--format", "json", "--output", "c.json", cwd=tmp_path)
    assert to_file.stdout == ""
    jsonschema.validate(json.loads((tmp_path / "c.json").read_text()), check_schema())


def test_the_project_file_names_the_default_config(tmp_path):
    (tmp_path / "mine.toml").write_text(f'[data]\nroot = "{ROOT}/examples/data/g1"\n')
    (tmp_path / "preflight.toml").write_text('config = "mine.toml"\n')
    done = preflight("check", "--level", "quick", "--only", "data.*", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("Checklist for mine (native stack, level quick)")


@pytest.mark.slow
def test_the_default_config_is_cleared(tmp_path):
    done = preflight("check", "--format", "json", cwd=tmp_path)
    document = json.loads(done.stdout)
    spoke = {c["id"]: c["summary"] for c in document["checks"] if c["status"] not in ("pass", "skip")}
    # How many cores the machine has, and how busy it is, is not the config's doing.
    assert spoke.keys() <= {"config.workers", "loader.throughput"}, spoke
    assert done.returncode == 0
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_full_size_config_is_not_cleared_without_a_gpu(tmp_path):
    only = [word for id_ in ("memory.device", "grad.has-aux") for word in ("--only", id_)]
    done = preflight("check", "pi0_lighter_cup_trossen", *only, cwd=tmp_path)
    assert done.returncode == 3
    text = re.sub(r"\s+", " ", done.stdout)
    assert "no accelerator, so host RAM: parameters, optimizer, EMA, gradients and batch take 48.3 GiB" in text
    assert "traced at full size (3,238,048,528 parameters, 50 trainable leaves)" in text


def test_a_folder_of_the_users_own_shadows_nothing(tmp_path):
    for name in ("bench", "checks", "torch", "jax", "av"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    words = ["bench-loader", EXAMPLE, "--workers", "1", "--max-seconds", "0.5", *TINY]
    done = preflight(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    module = subprocess.run(
        [sys.executable, "-m", "preflight", "list-checks"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert module.returncode == 0, module.stderr
    assert "grad.has-aux" in module.stdout


def test_bench_loader_prints_a_table_and_valid_json(tmp_path):
    words = ["bench-loader", EXAMPLE, "--workers", "0,2", "--max-seconds", "2", "--output", "b.json"]
    done = preflight(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Recommended: " in done.stdout
    document = json.loads((tmp_path / "b.json").read_text())
    jsonschema.validate(document, json.loads((ROOT / "bench/bench_loader.schema.json").read_text()))
    assert [point["num_workers"] for point in document["points"]] == [0, 2]
    assert document["config"] == "g1"


def shell(line, cwd):
    return subprocess.run(
        line, shell=True, executable="/bin/bash", cwd=cwd, env=environment(), capture_output=True, text=True
    )


def test_an_output_that_breaks_does_not_change_the_verdict(tmp_path):
    quick = f"{PREFLIGHT} check {EXAMPLE} --level quick"
    listed = shell(f"{PREFLIGHT} list-checks | head -1; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert (listed.stderr, listed.stdout.splitlines()[-1]) == ("", "0")
    failing = shell(f"{quick} --set batch_size=600 | head -1; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert (failing.stderr, failing.stdout.splitlines()[-1]) == ("", "3")
    closed = shell(f"{quick} >&-; echo $?", tmp_path)
    assert (closed.stderr, closed.stdout) == ("", "0\n")
    full = shell(f"{quick} > /dev/full; echo $?", tmp_path)
    assert full.stderr == "preflight: the output could not be written: No space left on device\n"
    assert full.stdout == "1\n"
    to_file = shell(f"{quick} --output /dev/full; echo $?", tmp_path)
    assert to_file.stdout == "2\n"
    assert "--output /dev/full cannot be written: No space left on device" in to_file.stderr


def test_a_run_whose_reader_went_away_goes_on_and_saves(tmp_path):
    words = " ".join(["train", EXAMPLE, *TINY, "--exp-name", "teed", *ALONE])
    # head reads some lines and goes; the run must go on to its last checkpoint.
    shell(f"{PREFLIGHT} {words} | head -5; sleep 1", tmp_path)
    folder = tmp_path / "checkpoints/g1/teed"
    assert [p.name for p in folder.iterdir() if p.name.isdecimal()] == ["39"]


def test_ctrl_c_during_the_checks_exits_130_and_leaves_nothing(tmp_path):
    code, output = interrupt_when(["check", EXAMPLE], cwd=tmp_path, sign="Checklist for")
    assert (code, "Traceback" in output) == (130, False), output
    assert not any(tmp_path.iterdir())


def test_ctrl_c_during_a_training_saves_and_the_run_goes_on_where_it_stopped(tmp_path):
    words = ["train", EXAMPLE, *TINY, "--exp-name", "night", "--set", "num_workers=2"]
    code, output = interrupt_when(words, cwd=tmp_path, sign="Step 2:")
    assert (code, "Traceback" in output) == (130, False), output
    assert "SIGINT: saving a checkpoint, then stopping" in output
    folder = tmp_path / "checkpoints/g1/night"
    (saved,) = [int(p.name) for p in folder.iterdir() if p.name.isdecimal()]
    # The command that it prints is the command that works.
    shown = shlex.split(re.search(r"go on with +preflight (.*)", output)[1])
    done = preflight(*shown, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Step {saved + 1}: " in done.stdout
    assert "Training completed" in done.stdout
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 39


def test_a_run_under_nohup_outlives_its_terminal(tmp_path):
    words = ["train", EXAMPLE, *TINY, "--exp-name", "nohup", *ALONE]
    code, output = interrupt_when(words, cwd=tmp_path, sign="Step 2:", number=signal.SIGHUP, prefix=["nohup"])
    assert (code, "Training completed" in output) == (0, True), output


def test_sigterm_saves_too(tmp_path):
    words = ["train", EXAMPLE, *TINY, "--exp-name", "spot", *ALONE]
    code, output = interrupt_when(words, cwd=tmp_path, sign="Step 2:", number=signal.SIGTERM)
    assert (code, "SIGTERM: saving a checkpoint" in output) == (130, True), output


def test_sigterm_before_the_first_step_leaves_nothing(tmp_path):
    words = ["train", EXAMPLE, *TINY, "--exp-name", "early", "--set", "num_workers=2"]
    code, output = interrupt_when(words, cwd=tmp_path, sign="Training config", number=signal.SIGTERM)
    assert (code, "Traceback" in output) == (130, False), output
    assert not any(tmp_path.iterdir())


def test_saves_that_fail_are_a_sentence_each_and_the_last_is_the_runs(tmp_path):
    words = " ".join(["train", EXAMPLE, *TINY, "--exp-name", "small", *ALONE, "--set", "save_interval=3"])
    # No file may grow beyond 1 MiB: the camera views and metrics can be written, the parameters cannot.
    done = shell(f"ulimit -f 1024; {PREFLIGHT} {words}", tmp_path)
    assert done.returncode == 3, done.stderr
    assert "warn: checkpoint.save at step 3: checkpoint 3 could not be saved: " in done.stdout
    assert "preflight: the last save failed: checkpoint 39 could not be saved: " in done.stderr
    assert "no checkpoint is kept so far" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    left = {p.name for p in (tmp_path / "checkpoints/g1/small").iterdir()}
    assert left >= {"config.json", "metrics.jsonl", "camera_views", "summary.json"}
    assert not any(name[0].isdigit() for name in left)
    assert json.loads((tmp_path / "checkpoints/g1/small/summary.json").read_text())["exit"] == "failed"
    assert "Training failed: " in done.stdout


def test_a_run_that_the_watch_stops_exits_5(tmp_path):
    (tmp_path / "preflight.toml").write_text(
        '[watch]\n"loss.range" = { low = 1e6, high = 1e9, steps = 2, severity = "stop" }'
    )
    words = ["train", EXAMPLE, *TINY, "--exp-name", "stopped", *ALONE]
    done = preflight(*words, cwd=tmp_path)
    assert done.returncode == 5, done.stdout + done.stderr
    assert "stop: loss.range at step " in done.stdout
    assert re.search(r"^Training stopped: \d+ steps in .*\n  why           loss.range: ", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_a_run_that_is_not_cleared_exits_3_and_leaves_nothing(tmp_path):
    words = ["train", EXAMPLE, "--after-checks", "--set", "data.state=observation.stat", "--exp-name", "x"]
    done = preflight(*words, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Did you mean observation.state?" in done.stdout
    assert done.stdout.endswith("Not started: the checklist is not cleared. Nothing was created.\n")
    assert not any(tmp_path.iterdir())


def test_a_cleared_run_carries_its_clearance(tmp_path):
    words = ["train", EXAMPLE, *TINY, "--after-checks", "--exp-name", "y", "--set", "num_train_steps=4"]
    done = preflight(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "checkpoints/g1/y"
    clearance = json.loads((folder / "clearance.json").read_text())
    jsonschema.validate(clearance, check_schema())
    assert clearance["verdict"] == "cleared-with-warnings"
    assert "Training config: g1 with 2 workers\n" in done.stdout
    assert re.search(r"^Step 2: loss=\S+, grad_norm=\S+, .* \| \d+\.\d\d steps/s$", done.stdout, re.MULTILINE)
    for kept in (
        "metrics.jsonl",
        "telemetry.jsonl",
        "summary.json",
        "report.html",
        "camera_views",
        "wandb_id.txt",
        "3",
    ):
        assert (folder / kept).exists()
    assert "  report        checkpoints/g1/y/report.html\n" in done.stdout
    # What the checklist foretold is held against what was seen.
    told = json.loads(preflight("report", str(folder), "--format", "json", cwd=tmp_path).stdout)
    assert (told["verdict"]["state"], told["figures"]["goodput"] > 0) == ("completed", True)
    judged = {row["name"]: row["judgement"] for row in told["forecast"]}
    for name in ("Steps per second", "Size of a checkpoint"):
        assert judged[name] in ("held", "above"), judged
    for name in ("RAM of the loader's workers", "RAM of the whole run"):  # four steps may be over before a sample
        assert judged[name] in ("held", "above", "not-observed"), judged
    again = preflight(*words, cwd=tmp_path)
    assert (again.returncode, "already exists" in again.stderr) == (2, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_without_permission_is_not_cleared(tmp_path):
    tmp_path.chmod(0o500)
    done = preflight("check", EXAMPLE, "--level", "quick", "--only", "storage.*", cwd=tmp_path)
    assert (done.returncode, "cannot be written" in done.stdout) == (3, True)
