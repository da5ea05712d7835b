"""Runs that are killed, stopped or disturbed, and resumed: they end bit-identical to one that was left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import psutil
import pytest
from killed_run import (
    assert_identical,
    end,
    finish,
    folder_of,
    left,
    output_of,
    reaches,
    saves,
    start,
    steps_logged,
    wait_for,
)
from small_disk import fill, make_room, small_disk
from toy_run import flying_toy

from preflight.errors import PreflightError, UsageError
from preflight.training.folder import run_folder, saved_steps, unfinished_saves
from preflight.training.loop import train


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the run leaves that nobody disturbs; and its folder."""
    base = tmp_path_factory.mktemp("undisturbed")
    finish(base, "run")
    found = left(base, "run")
    assert [record["step"] for record in found[1]] == [*range(0, 60, 7), 59]
    assert found[2]["checkpoints"] == [20, 40, 59]
    return found, base


def test_a_run_killed_at_any_moment_and_resumed_ends_bit_identical(undisturbed, tmp_path):
    moments = random.Random(6)
    folder = folder_of(tmp_path, "run")
    words = []
    for _ in range(2):
        done = max(saved_steps(folder), default=0)
        process = start(tmp_path, "run", *words)
        assert wait_for(process, lambda folder=folder, done=done: max(saved_steps(folder), default=0) > done)
        time.sleep(moments.uniform(0, 0.3))
        assert end(process) == -signal.SIGKILL, output_of(tmp_path, "run")
        words = ["--resume"]
    # And in the middle of a save.
    process = start(tmp_path, "run", *words)
    assert wait_for(process, saves(folder, saved_steps(folder)[-1] + 1))
    end(process)
    assert unfinished_saves(folder)
    finish(tmp_path, "run", "--resume")
    assert unfinished_saves(folder) == []
    assert_identical(left(tmp_path, "run"), undisturbed[0])


def test_a_whole_job_that_gets_sigterm_saves_and_goes_on_bit_identical_with_other_workers(undisturbed, tmp_path):
    folder = folder_of(tmp_path, "run")
    process = start(tmp_path, "run", "num_workers=2")
    assert wait_for(process, reaches(folder, 14))
    children = psutil.Process(process.pid).children(recursive=True)
    # As Slurm does: every process of the job.
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 130, output_of(tmp_path, "run")
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert "SIGTERM: saving a checkpoint, then stopping" in output_of(tmp_path, "run")
    assert "restarting" not in output_of(tmp_path, "run")
    assert unfinished_saves(folder) == []
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["exit"], summary["reason"]) == ("interrupted", "by SIGTERM")
    # No interval that the signal cut short stands among the records.
    assert all(step % 7 == 0 for step in steps_logged(folder))
    finish(tmp_path, "run", "--resume", "num_workers=1")
    assert_identical(left(tmp_path, "run"), undisturbed[0])


def test_a_second_signal_ends_at_once_and_harms_nothing(undisturbed, tmp_path):
    folder = folder_of(tmp_path, "run")
    process = start(tmp_path, "run", "--slow-from=22")
    assert wait_for(process, lambda: reaches(folder, 21)() and 20 in saved_steps(folder))
    time.sleep(1)  # step 21 is logged while step 22 is made; after that it stands still
    process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    assert process.poll() is None
    began = time.monotonic()
    assert end(process, signal.SIGINT) == 130
    assert time.monotonic() - began < 10
    assert "saving a checkpoint" not in output_of(tmp_path, "run")
    assert saved_steps(folder)[-1] == 20
    finish(tmp_path, "run", "--resume")
    assert_identical(left(tmp_path, "run"), undisturbed[0])


def test_a_second_signal_inside_of_a_save_ends_at_once_and_harms_nothing(undisturbed, tmp_path):
    folder = folder_of(tmp_path, "run")
    process = start(tmp_path, "run")
    assert wait_for(process, lambda: 20 in saved_steps(folder))
    end(process)
    last = saved_steps(folder)[-1]
    process = start(tmp_path, "run", "--resume", "--slow-saves", "save_interval=1000")
    assert wait_for(process, reaches(folder, last + 7))
    process.send_signal(signal.SIGTERM)
    assert wait_for(process, saves(folder, last))
    time.sleep(0.7)
    assert process.poll() is None
    began = time.monotonic()
    assert end(process, signal.SIGTERM) == 130, output_of(tmp_path, "run")
    assert time.monotonic() - began < 10
    assert "Traceback" not in output_of(tmp_path, "run")
    assert saved_steps(folder)[-1] == last
    finish(tmp_path, "run", "--resume")
    assert_identical(left(tmp_path, "run"), undisturbed[0])


def test_a_worker_that_is_killed_is_told_of_and_changes_nothing(undisturbed, tmp_path):
    process = start(tmp_path, "run", "num_workers=2")
    for turn, step in enumerate((7, 21)):
        assert wait_for(process, reaches(folder_of(tmp_path, "run"), step))
        (server,) = [one for one in psutil.Process(process.pid).children() if "forkserver" in " ".join(one.cmdline())]
        os.kill(server.children()[turn].pid, signal.SIGKILL)
    assert process.wait(120) == 0, output_of(tmp_path, "run")
    output = output_of(tmp_path, "run")
    assert output.count(" was killed by SIGKILL") == 2
    assert "; restarting it (2 of 3 restarts)" in output
    assert_identical(left(tmp_path, "run"), undisturbed[0])


def test_a_disk_that_is_full_for_a_while_does_not_end_the_run(undisturbed, tmp_path):
    with small_disk(tmp_path / "disk", 16) as disk:
        process = start(disk, "run")
        folder = folder_of(disk, "run")
        assert wait_for(process, lambda: saved_steps(folder) == [10])
        # SIGSTOP: neither save nor step happens between the look and the filling.
        process.send_signal(signal.SIGSTOP)
        fill(disk, leave_bytes=0)
        process.send_signal(signal.SIGCONT)
        assert wait_for(process, lambda: "checkpoint.save at step" in output_of(disk, "run"))
        assert max(saved_steps(folder)) <= 15
        make_room(disk)
        assert process.wait(120) == 0, output_of(disk, "run")
        assert "could not be saved: the disk of" in output_of(disk, "run")
        found, wanted = left(disk, "run"), undisturbed[0]
        # 20 was not saved, perhaps.
        assert_identical((found[0], found[1]), (wanted[0], wanted[1]))


def test_a_last_save_that_fails_is_the_runs_failure(tmp_path):
    with small_disk(tmp_path / "disk", 16) as disk:
        process = start(disk, "run")
        folder = folder_of(disk, "run")
        assert wait_for(process, lambda: saved_steps(folder) == [10])
        process.send_signal(signal.SIGSTOP)
        fill(disk, leave_bytes=0)
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 3, output_of(disk, "run")
        assert "the last save failed: checkpoint" in output_of(disk, "run")
        assert saved_steps(folder)[0] == 10
        make_room(disk)
        finish(disk, "run", "--resume")


@pytest.fixture
def stopped(undisturbed, tmp_path):
    """A copy of the run as a kill after step 40 leaves it."""
    shutil.copytree(folder_of(undisturbed[1], "run"), folder_of(tmp_path, "run"))
    shutil.rmtree(folder_of(tmp_path, "run") / "59")
    return tmp_path


def fly(base, *assignments, **options):
    run = flying_toy(
        *(base, "num_train_steps=60", "log_interval=7", "save_interval=5", "keep_period=20", "ema_decay=0.9"),
        *assignments,
        width=256,
    )
    said = []
    return train(run, run_folder(run.facts, "run"), **{"report": None, "say": said.append} | options), said


def test_another_number_of_devices_may_go_on(stopped, undisturbed):
    # The tests' process has two devices, the child had one: sums are made in another order.
    fly(stopped, "fsdp_devices=2", resume=True)
    found, wanted = left(stopped, "run"), undisturbed[0]
    assert [record["step"] for record in found[1]] == [record["step"] for record in wanted[1]]
    assert found[1][-1]["loss"] == pytest.approx(wanted[1][-1]["loss"], rel=1e-4)


def test_an_older_versions_folder_goes_on(stopped):
    folder = folder_of(stopped, "run")
    record = json.loads((folder / "config.json").read_text())
    for new in ("gradient_accumulation_steps", "fsdp_devices", "data.on_bad_sample", "data.shuffle_window"):
        del record[new]
    (folder / "config.json").write_text(json.dumps(record))
    for step in (20, 40):
        (folder / str(step) / "files.json").unlink()
        (folder / str(step) / "assets" / "preflight.json").unlink()
    with pytest.raises(UsageError, match=r"gradient_accumulation_steps is 2, was 1$"):
        fly(stopped, "gradient_accumulation_steps=2", resume=True)
    summary, _ = fly(stopped, resume=True)
    assert (summary.exit, summary.steps) == ("completed", 19)


def test_a_folder_without_a_record_goes_on(stopped):
    (folder_of(stopped, "run") / "config.json").unlink()
    summary, said = fly(stopped, resume=True)
    assert summary.exit == "completed"
    assert any(line.startswith("Step 41: ") and "first step" in line for line in said)


def test_a_damaged_record_of_the_metrics_is_named(stopped):
    path = folder_of(stopped, "run") / "40" / "assets" / "preflight.json"
    content = path.read_text()
    path.write_text(content[:-9])
    with pytest.raises(PreflightError, match=r"assets/preflight\.json has .* bytes instead of"):
        fly(stopped, resume=True)
    path.write_text("{" + content[1:].replace('"first_step"', '"first_stop"'))
    with pytest.raises(PreflightError, match=r"assets/preflight\.json cannot be read \(KeyError\)"):
        fly(stopped, resume=True)
    assert saved_steps(folder_of(stopped, "run")) == [20, 40]


def test_a_newest_folder_that_is_unfinished_is_no_checkpoint(stopped, undisturbed):
    folder = folder_of(stopped, "run")
    shutil.copytree(folder / "40" / "params", folder / "45.orbax-checkpoint-tmp-9" / "params")
    finish(stopped, "run", "--resume")
    assert unfinished_saves(folder) == []
    assert_identical(left(stopped, "run"), undisturbed[0])


def test_a_run_killed_between_its_last_checkpoint_and_its_summary_gets_its_end(undisturbed, tmp_path):
    folder = folder_of(tmp_path, "run")
    shutil.copytree(folder_of(undisturbed[1], "run"), folder)
    with pytest.raises(UsageError, match="run is complete: 60 of 60 steps are done"):
        fly(tmp_path, resume=True)
    (folder / "summary.json").unlink()
    summary, said = fly(tmp_path, resume=True)
    assert said == ["run has made all its steps, and was killed before its summary was written"]
    assert (summary.exit, summary.steps) == ("completed", 0)
    assert_identical(left(tmp_path, "run"), undisturbed[0])


def test_nothing_but_an_unfinished_folder_is_nothing_to_resume(tmp_path):
    (folder_of(tmp_path, "run") / "5.orbax-checkpoint-tmp-9").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"but 5\.orbax-checkpoint-tmp-9, the remains of a save") as caught:
        fly(tmp_path, resume=True)
    assert caught.value.hint == "start it anew with --overwrite"


def test_a_folder_that_another_process_trains_in_is_left_alone(tmp_path):
    process = start(tmp_path, "run", "num_train_steps=2000")
    try:
        assert wait_for(process, lambda: saved_steps(folder_of(tmp_path, "run")))
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UsageError, match="another process is training in"):
                fly(tmp_path, "num_train_steps=2000", **options)
        assert process.poll() is None
    finally:
        end(process)


def test_a_signal_before_anything_is_trained_leaves_nothing(tmp_path):
    process = start(tmp_path, "run")
    assert wait_for(process, lambda: "Training config" in output_of(tmp_path, "run"))
    assert end(process, signal.SIGTERM) == 130, output_of(tmp_path, "run")
    assert not folder_of(tmp_path, "run").exists()
    assert "Traceback" not in output_of(tmp_path, "run")


def test_timeouts_two_signals_are_one_wish(tmp_path):
    # coreutils' timeout signals its child, and then its group, of which that is one.
    process = start(tmp_path, "run")
    assert wait_for(process, reaches(folder_of(tmp_path, "run"), 7))
    for _ in range(2):
        subprocess.run(["kill", "-TERM", str(process.pid)], check=True)
    assert process.wait(60) == 130
    assert "SIGTERM: saving a checkpoint" in output_of(tmp_path, "run")
    assert saved_steps(folder_of(tmp_path, "run"))[-1] >= 7
