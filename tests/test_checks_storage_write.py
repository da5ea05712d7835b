"""`storage.write`: real saves by real processes, and nothing left of them."""

import os
import resource
import subprocess
import sys
import threading
import time

import psutil
import pytest
from healthy import context, spoken

from checks import CHECKLIST, storage_write
from checks.rehearsed_save import PREFIX
from checks.storage_write import CHECK
from preflight.checklist import run_checks
from preflight.runs import load_run

MIB = 2**20
SHAPES = {"params": [([64, 64], "float32")], "opt_state": [([64, 64], "float32"), ([], "int32")], "ema_params": []}


def at(folder, **changes):
    return context(f"checkpoint_base_dir={folder}", **changes)


def writers(folder):
    """The keeper and the writer that are at work below a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any("rehearsed_save.py" in word for word in words) and any(str(folder) in word for word in words):
            found.append(process)
    return found


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_a_healthy_run_saves_and_leaves_nothing(tmp_path):
    base = tmp_path / "not" / "there yet"
    wanted = {"env.accelerator", "config.model", "storage.checkpoint-dir", "storage.space"}
    checks = [*(check for check in CHECKLIST if check.id in wanted), CHECK]
    results = {r.check.id: r for r in run_checks(checks, at(base), max_parallel=1)}
    assert spoken(results) == set()
    outcome = results[CHECK.id].outcome
    assert outcome.summary.startswith(f"5.9 MiB saved in {tmp_path} at ")
    assert outcome.summary.endswith(" s (how long a step takes is not known)")
    assert 0.5 < outcome.measured["stored_share"] < 1.1
    assert outcome.measured["blocking_s"] <= outcome.measured["seconds"]
    assert "peak_factor" not in outcome.measured
    assert list(tmp_path.iterdir()) == []
    assert writers(tmp_path) == []


def test_the_full_model_is_rehearsed_small_with_as_many_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(storage_write, "_MOST_BYTES", 8 * MIB)
    checked = context(run=load_run("pi0_lighter_cup_trossen", assignments=[f"checkpoint_base_dir={tmp_path}"]))
    asked = []
    monkeypatch.setattr(storage_write, "_rehearse", lambda place, shapes: asked.append(shapes) or figures(8 * MIB, 1.0))
    outcome = CHECK.run(checked)
    (shapes,) = asked
    assert len(shapes["params"]) == 50
    assert len(shapes["opt_state"]) == 102
    assert shapes["ema_params"] == []
    assert 7 < outcome.measured["rehearsed_mib"] < 11  # no axis is cut to nothing
    # 36.2 GiB at 8 MiB/s.
    assert outcome.measured["whole_checkpoint_s"] == pytest.approx(36.19 * 1024 / 8, rel=0.01)
    assert outcome.summary.endswith("takes 77 min (how long a step takes is not known)")


def figures(num_bytes, seconds):
    return {
        "bytes": num_bytes,
        "seconds": seconds,
        "blocking_s": seconds / 2,
        "stored": num_bytes,
        "peak": 2 * num_bytes,
    }


def test_little_disk_or_ram_makes_it_smaller(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(storage_write, "_rehearse", lambda place, shapes: asked.append(shapes) or figures(MIB, 1.0))
    CHECK.run(at(tmp_path, probes={"disk_free": lambda path: 2 * MIB}))
    assert storage_write._bytes_of(asked[0]) < 1.5 * MIB


def test_what_a_save_takes_of_the_ram_is_what_memory_checkpoint_goes_by(tmp_path):
    """256 MiB: the copy, and what Orbax writes at once."""
    shapes = {"params": [([16, MIB // 4], "float32")] * 5, "opt_state": [([16, MIB // 4], "float32")] * 11}
    answer = storage_write._rehearse(tmp_path, {**shapes, "ema_params": []})
    assert answer["bytes"] == 256 * MIB
    assert 1 < answer["peak"] / answer["bytes"] < 2.5
    assert list(tmp_path.iterdir()) == []


def test_saves_slower_than_the_steps_between_them_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(storage_write, "_rehearse", lambda place, shapes: figures(6_200_000, 62.0))
    monkeypatch.setattr(storage_write, "_step_s", lambda checked: (0.1, 0.25))
    outcome = CHECK.run(at(tmp_path))
    assert outcome.status == "warn"
    assert "the 415 steps between two saves 42 s to 104 s: a save that is not finished" in outcome.summary
    assert outcome.measured["save_interval_s"] == [41.5, 103.8]
    assert "--set save_interval=" in outcome.hint.commands[0]
    monkeypatch.setattr(storage_write, "_step_s", lambda checked: (0.2, 0.5))
    assert CHECK.run(at(tmp_path)).status == "pass"


def test_a_place_that_refuses_is_one_sentence():
    outcome = CHECK.run(at("/proc/checkpoints"))
    assert outcome.status == "fail"
    assert outcome.summary.startswith("a rehearsed save in /proc failed: ")
    assert outcome.hint.text == "choose another place: --set checkpoint_base_dir=DIR"


def test_a_save_that_fails_is_told_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        outcome = CHECK.run(at(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.status == "fail"
    assert outcome.summary.startswith(f"a rehearsed save in {tmp_path} failed: checkpoint 0 could not be saved: ")
    assert PREFIX not in outcome.summary
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_does_not_keep_up_is_given_up_on(tmp_path, monkeypatch):
    monkeypatch.setattr(storage_write, "_TIMEOUT_S", 0.5)
    outcome = CHECK.run(at(tmp_path))
    assert outcome.status == "warn"
    assert "were not saved in" in outcome.summary
    assert list(tmp_path.iterdir()) == []
    assert writers(tmp_path) == []


def test_a_writer_that_the_kernel_kills_is_told_and_leaves_nothing(tmp_path):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(CHECK.run(at(tmp_path))))
    thread.start()
    wait_until(lambda: any("write" in process.cmdline() for process in writers(tmp_path)))
    next(process for process in writers(tmp_path) if "write" in process.cmdline()).kill()
    thread.join(60)
    assert answers[0].status == "fail"
    assert answers[0].summary.endswith("was killed, as the kernel does when the RAM runs out")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    """The command ends with `os._exit` on Ctrl-C, in the middle of the writing."""
    script = (
        "import json, os, sys, threading, time\n"
        "from pathlib import Path\n"
        "from checks import storage_write\n"
        "place = Path(sys.argv[1])\n"
        "shapes = {'params': [([64, 262144], 'float32')] * 4, 'opt_state': [], 'ema_params': []}\n"
        "threading.Thread(target=storage_write._rehearse, args=(place, shapes), daemon=True).start()\n"
        "while not list(place.glob('.preflight-rehearsal-*/*')): time.sleep(0.01)\n"
        "os._exit(130)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=100, env=os.environ)
    assert ended.returncode == 130
    wait_until(lambda: not list(tmp_path.iterdir()), 20)
    wait_until(lambda: not writers(tmp_path), 20)
    time.sleep(0.5)
    assert list(tmp_path.iterdir()) == []


def test_shapes_of_every_kind_are_written(tmp_path):
    shapes = {**SHAPES, "ema_params": [([3], "bfloat16"), ([2, 1], "int32")]}
    answer = storage_write._rehearse(tmp_path, shapes)
    assert answer["bytes"] == 2 * 64 * 64 * 4 + 4 + 6 + 8
