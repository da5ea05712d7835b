"""However a run ends, it leaves a summary and a report, and the state that it had."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import psutil
import pytest
from PIL import Image
from run_folder import SUMMARY
from toy_run import flying_toy

from preflight.config.watch import WatchSettings, read_watch
from preflight.errors import PreflightError
from preflight.report.run_report import read_report, write_report
from preflight.training.device_errors import device_errors
from preflight.training.folder import run_folder, saved_steps
from preflight.training.loop import train
from preflight.training.tracking import Tracker


def fly(run, name="run", **options):
    said = []
    summary = train(run, run_folder(run.facts, name), **{"say": said.append, "report": None} | options)
    return summary, said


def left(folder, name="summary.json"):
    return json.loads((folder / name).read_text())


def records(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def at_step(step, action):
    def on_step(made):
        if made == step:
            action()

    return on_step


def test_a_completed_run_says_where_its_time_went(tmp_path):
    summary, _ = fly(flying_toy(tmp_path), clearance={"verdict": "cleared"})
    document = left(summary.folder)
    assert document.keys() >= SUMMARY.keys()
    assert document["clocks"].keys() >= SUMMARY["clocks"].keys()
    assert (document["exit"], document["reason"], document["steps"], document["checkpoints"]) == (
        *("completed", None),
        *(8, [7]),
    )
    assert sum(document["clocks"].values()) == pytest.approx(document["seconds"], abs=0.01)
    assert document["goodput"] == pytest.approx(document["clocks"]["step_s"] / document["seconds"], abs=0.01)
    assert all(document["clocks"][name] > 0 for name in ("start_s", "compile_s", "step_s", "data_wait_s"))
    assert document["clocks"]["checkpoint_s"] > 0
    assert document["clocks"]["compile_s"] == pytest.approx(summary.compile_s, rel=0.1)
    assert document["samples_per_sec"] == pytest.approx(4 * document["steps_per_sec"])
    losses = [record["loss"] for record in records(summary.folder)]
    assert (document["best_loss"], document["last_loss"]) == (min(losses), losses[-1])
    assert [record["step"] for record in records(summary.folder)] == [0, 2, 4, 6, 7]
    # Neither compile nor first step, nor saves, are in any interval's pace.
    paced = sum(
        record["efficiency/time_per_step"] * n
        for record, n in zip(records(summary.folder)[1:], (2, 2, 2, 1), strict=True)
    )
    assert paced == pytest.approx(7 / document["steps_per_sec"], rel=1e-3)
    assert paced < document["seconds"] - document["clocks"]["compile_s"]
    assert left(summary.folder, "clearance.json") == {"verdict": "cleared"}
    telemetry = records(summary.folder, "telemetry.jsonl")
    assert telemetry[-1]["main"]["cpu_cores"] is None or telemetry[-1]["main"]["cpu_cores"] >= 0
    assert len(telemetry) >= 2


def test_the_report_is_made_of_the_finished_run_and_agrees_with_it(tmp_path):
    made = []

    def report(folder):
        made.append(read_report(folder)[0])
        return folder / "report.html"

    summary, _ = fly(flying_toy(tmp_path), report=report)
    (document,) = made
    assert document["verdict"]["state"] == "completed"
    assert document["figures"]["goodput"] == pytest.approx(summary.goodput, abs=1e-3)
    assert document["figures"]["clocks"]["compile_s"] == pytest.approx(summary.clocks["compile"], abs=1e-3)
    assert document["over_time"]["samples"] >= 2  # the last one is written before the report is made
    assert [one["step"] for one in document["checkpoints"]] == [7]


def test_a_report_that_fails_is_no_matter_of_the_run(tmp_path, caplog):
    def report(folder):
        raise OSError(28, "No space left on device")

    summary, _ = fly(flying_toy(tmp_path), report=report)
    assert summary.exit == "completed"
    assert "the report could not be made: OSError: [Errno 28] No space left on device" in caplog.text


def test_a_signal_saves_and_ends(tmp_path):
    run = flying_toy(tmp_path)
    reports = []
    summary, said = fly(
        run,
        on_step=at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        report=reports.append,
    )
    assert (summary.exit, summary.reason, summary.steps) == ("interrupted", "by SIGTERM", 4)
    assert "SIGTERM: saving a checkpoint, then stopping (again to stop at once)" in said
    assert saved_steps(summary.folder) == [3]
    assert left(summary.folder)["exit"] == "interrupted"
    assert records(summary.folder)[-1]["step"] == 2  # the next one is kept in the checkpoint until it is whole
    assert reports == [summary.folder]
    resumed, _ = fly(run, resume=True)
    assert (resumed.exit, resumed.steps) == ("completed", 4)
    assert left(resumed.folder)["exit"] == "completed"
    assert [record["step"] for record in records(resumed.folder)] == [0, 2, 4, 6, 7]


def test_a_second_signal_ends_at_once(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.6)  # sooner, it is the same wish
        os.kill(os.getpid(), signal.SIGINT)

    run = flying_toy(tmp_path)
    reports = []
    with pytest.raises(KeyboardInterrupt):
        fly(run, on_step=at_step(5, twice), report=reports.append)
    folder = run_folder(run.facts, "run")
    assert left(folder)["exit"] == "interrupted"
    assert "second signal" in left(folder)["reason"]
    assert not reports


def test_a_batch_that_cannot_be_read_loses_nothing_and_says_why(tmp_path):
    run = flying_toy(tmp_path, missing_step=3)
    with pytest.raises(PreflightError, match="cannot be read") as caught:
        fly(run)
    assert caught.value.hint.endswith("Checkpoint 2 is saved; --resume goes on from it.")
    folder = run_folder(run.facts, "run")
    assert saved_steps(folder) == [2]
    assert left(folder)["exit"] == "failed"
    assert left(folder)["reason"] == caught.value.message
    assert left(folder)["steps"] == 3


def test_skipped_samples_are_asked_for_in_the_config(tmp_path, caplog):
    run = flying_toy(tmp_path, "data.on_bad_sample=skip", missing_step=3)
    summary, _ = fly(run)
    assert summary.exit == "completed"
    assert "cannot be loaded and is skipped (1 of at most 100)" in caplog.text
    with pytest.raises(PreflightError, match="it is one of 1 bad samples in a row"):
        fly(flying_toy(tmp_path, "data.on_bad_sample=skip", "data.max_skipped=0", missing_step=3), "none")


def test_pictures_show_the_batch_that_the_step_trained_on(tmp_path):
    run = flying_toy(tmp_path, "milestones=[3]")
    summary, _ = fly(run)
    from preflight.data.sampler import batch_indices

    assert [path.name for path in summary.camera_views] == [f"step_00000{step}.png" for step in (0, 3, 4, 7)]
    for path, step in zip(summary.camera_views, (0, 3, 4, 7), strict=True):
        indices = batch_indices(512, 4, run.facts.seed, step)
        with Image.open(path) as image:
            assert [image.getpixel((224 * i + 9, 9))[0] for i in range(4)] == [int(i) % 256 for i in indices]


def test_a_loss_that_is_no_number_stops_the_run_and_the_checkpoint_before_stays(tmp_path, caplog):
    summary, said = fly(flying_toy(tmp_path, "save_interval=2", broken_step=5), report=write_report)
    assert summary.exit == left(summary.folder)["exit"] == "stopped"
    assert saved_steps(summary.folder) == [4]
    assert "is not saved: " in caplog.text
    alert = next(alert for alert in records(summary.folder, "alerts.jsonl") if alert["rule"] == "loss.finite")
    assert alert["severity"] == "stop"
    assert alert["window"][0] <= 5 <= alert["window"][1]
    assert alert["window"][0] >= 4  # no wider than the interval that it was seen in
    assert left(summary.folder)["reason"].startswith("loss.finite: ")
    assert any(line.startswith("stop: loss.finite at step ") for line in said)
    assert summary.steps == 8  # step 6 was logged when step 7 was under way
    document = read_report(summary.folder)[0]
    assert document["verdict"]["state"] == "stopped"
    assert "loss.finite" in summary.report.read_text()


def test_a_state_that_is_no_number_is_not_saved_where_nobody_watches_either(tmp_path, caplog):
    nobody = WatchSettings(rules={})
    summary, _ = fly(flying_toy(tmp_path, "save_interval=2", broken_step=5), watch=nobody)
    assert (summary.exit, saved_steps(summary.folder)) == ("completed", [4])
    assert "checkpoint 6 is not saved: grad_max is nan at step 5; the older ones stay" in caplog.text
    assert left(summary.folder)["last_loss"] is None
    assert not (summary.folder / "alerts.jsonl").exists()


def hung(base, *words):
    """A run that hangs in a process of its own, and ends it; nothing that it started is left."""
    here, mark = Path(__file__).parent, {"HANG_CHILD": str(base)}
    environ = {**os.environ, **mark, "PYTHONPATH": str(here)}
    words = [sys.executable, str(here / "hang_child.py"), str(base), *words]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 5, done.stdout + done.stderr
    started = psutil.process_iter(["environ"])
    assert not [one for one in started if mark.items() <= (one.info["environ"] or {}).items()]
    return done


def test_a_run_that_hangs_says_where_and_ends_if_it_is_asked_to(tmp_path):
    done = hung(tmp_path, "6", "1800")
    assert done.stdout.endswith("stopped")
    folder = tmp_path / "pi0_lighter_cup_demo" / "run"
    (alert,) = records(folder, "alerts.jsonl")
    assert (alert["rule"], alert["severity"]) == ("hang", "stop")
    assert "toy_run.py" in alert["message"]  # where the worker is
    (stacks,) = folder.glob("hang_*.txt")
    assert "toy_run.py" in stacks.read_text()
    assert left(folder)["exit"] == "stopped"
    assert left(folder)["reason"] == f"hang: {alert['message']}"
    assert saved_steps(folder) == [3]
    assert "Stopped by the watch" in (folder / "report.html").read_text()


def test_a_start_that_hangs_says_where_and_leaves_nothing(tmp_path):
    done = hung(tmp_path / "runs", "0", "4")
    said = "stop: hang: no step has ended for 4 s, before the first step ended, during the start: the first batch, "
    assert said in done.stdout, done.stdout
    assert "worker 0 is at toy_run.py" in done.stdout
    assert "toy_run.py" in done.stderr  # the stacks, which have no folder to go to
    assert not (tmp_path / "runs").exists()


def test_what_fits_no_device_is_one_sentence(tmp_path):
    # On one of the two devices: where one of several that work together has no memory, XLA's CPUs wait for each other.
    with (
        pytest.raises(PreflightError, match="cpu has no memory left, asked for") as caught,
        device_errors(flying_toy(tmp_path).facts),
    ):
        jax.block_until_ready(jnp.zeros(2**43, jnp.uint8))  # 8 TiB
    assert "preflight check pi0_lighter_cup_demo" in caught.value.hint


def test_a_resume_without_checks_is_held_against_what_the_first_start_foretold(tmp_path):
    foretold = {"loader.throughput": {"samples_per_s": {"0": [8e9, 8e9, 8e9]}}}
    foretold["step.roofline"] = {"demand_samples_per_s": [4e6, 4e6]}
    checks = [{"id": id_, "status": "pass", "measured": measured} for id_, measured in foretold.items()]
    clearance = {"verdict": "cleared", "checks": checks}
    stop = at_step(4, lambda: signal.raise_signal(signal.SIGTERM))
    summary, _ = fly(flying_toy(tmp_path), clearance=clearance, on_step=stop)
    assert summary.exit == "interrupted"
    pace = read_watch("x", {"slow.pace": {"window": 2, "seconds": 0.001}})
    _, said = fly(flying_toy(tmp_path, "num_train_steps=12"), resume=True, watch=pace)
    assert any("slow.pace" in line and "the checklist foretold 1e+06" in line for line in said), said
    assert left(summary.folder, "clearance.json") == clearance


def test_a_failed_start_leaves_nothing(tmp_path):
    base = tmp_path / "runs"
    with pytest.raises(PreflightError, match="cannot be read"):
        fly(flying_toy(base, missing_step=0))
    assert not base.exists()


class Wandb:
    """Stands in for a run of wandb: remembers what it is given."""

    offline, dir, id = False, "/nowhere/files", "x"

    def __init__(self):
        self.logged = []

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.logged.append("finished")


def test_wandb_gets_metrics_machine_and_pictures_in_the_order_of_the_steps(tmp_path, monkeypatch):
    wandb, started = Wandb(), []

    def start(choice, **options):
        started.append(options)
        return Tracker(wandb)

    monkeypatch.setattr(Tracker, "start", start)
    clearance = {"verdict": "cleared", "checks": []}
    summary, _ = fly(flying_toy(tmp_path), clearance=clearance)
    assert started[0]["config"]["clearance"] == clearance
    assert started[0]["config"]["batch_size"] == 4
    *logged, last = wandb.logged
    assert last == "finished"
    steps = [step for step, _ in logged]
    assert steps == sorted(steps)  # wandb drops what comes late
    metrics = {step: values for step, values in logged if "loss" in values}
    assert list(metrics) == [0, 2, 4, 6, 7]
    assert [record["loss"] for record in records(summary.folder)] == [values["loss"] for values in metrics.values()]
    assert metrics[7]["telemetry/host_memory/available_bytes"] > 0
    assert [step for step, values in logged if "camera_views" in values] == [0, 4, 7]
