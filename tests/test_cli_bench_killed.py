"""`preflight bench-loader` that is killed, or whose worker is, from outside: what it says, keeps and leaves."""

import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from command import EXAMPLE, PREFLIGHT, environment, wait_until


def test_a_killed_worker_is_named_and_what_was_measured_is_kept(tmp_path):
    output = tmp_path / "b.json"
    words = ["--workers", "1,2", "--max-seconds", "5", "--set", "batch_size=2", "--output", "b.json"]
    process = subprocess.Popen(
        [PREFLIGHT, "bench-loader", EXAMPLE, *words],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    family = []
    try:
        wait_until(lambda: output.exists() or process.poll() is not None, timeout_s=90)
        victims = []

        def both_workers_load():
            # Workers are children of the server, which is a child of the command.
            victims[:] = [w for server in psutil.Process(process.pid).children() for w in server.children()]
            return len(victims) == 2 or process.poll() is not None

        wait_until(both_workers_load)
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(victims[1].pid, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 3, stderr
    assert f"(pid {victims[1].pid}) was killed by SIGKILL" in stderr
    assert "hint: The kernel kills a process when RAM runs out" in stderr
    assert "Traceback" not in stderr
    assert "Partial: the sweep ended before its time" in stdout
    left = json.loads(output.read_text())
    assert (left["complete"], left["points"][0]["num_workers"]) == (False, 1)
    assert os.listdir(tmp_path) == ["b.json"]
    assert psutil.wait_procs(family, timeout=15)[1] == []


def alive_of(session):
    """Processes of a session, those whose parent is gone among them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def in_shared_memory():
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def test_a_name_too_long_for_a_socket_is_said_in_a_sentence(tmp_path):
    folder = tmp_path / ("t" * 100)
    folder.mkdir()
    words = ["bench-loader", EXAMPLE, "--workers", "1", "--max-seconds", "1"]
    done = subprocess.run(
        [PREFLIGHT, *words], cwd=tmp_path, env=environment(TMPDIR=str(folder)), capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert "has too long a name for a socket" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def short_path():
    """Short enough for a socket in it; a test's own folder is not always."""
    with tempfile.TemporaryDirectory(prefix="killed-") as folder:
        yield Path(folder)


def test_killed_at_any_moment_it_leaves_no_process_and_no_file(short_path):
    """From before its imports to after its last batch; several at once, to make every moment last longer."""
    tmp_path = short_path
    moments = random.Random(4)
    words = ["bench-loader", EXAMPLE, "--workers", "1,2", "--max-seconds", "2", "--set", "batch_size=2"]
    kills = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT] * 3 + [signal.SIGKILL]
    before = in_shared_memory()
    for wave in (kills[:5], kills[5:]):
        runs = []
        for number, how in enumerate(wave):
            folder = tmp_path / str(number)
            (folder / "tmp").mkdir(parents=True)
            process = subprocess.Popen(
                [PREFLIGHT, *words],
                cwd=folder,
                env=environment(TMPDIR=str(folder / "tmp")),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            runs.append((moments.uniform(0.0, 6.0), how, process, folder))
        began = time.monotonic()
        try:
            for moment, how, process, folder in sorted(runs, key=lambda run: run[0]):
                time.sleep(max(0.0, began + moment - time.monotonic()))
                process.send_signal(how)
                _, said = process.communicate(timeout=60)
                where = f"{how.name} after {moment:.2f} s: {said}"
                # Before Python has put its handlers in place, a signal ends it as it ends any process.
                assert process.returncode in (0, -how, 130 if how == signal.SIGINT else 128 + how), where
                wait_until(lambda session=process.pid: not alive_of(session))
                assert [path for path in folder.rglob("*") if path.is_file()] == [], where
                assert list((folder / "tmp").iterdir()) == [], where
        finally:
            for _, _, process, _ in runs:
                process.kill()
                process.communicate()
        for run in runs:
            (run[3] / "tmp").rmdir()
            run[3].rmdir()
    # Others who run on this machine come and go: what came meanwhile must be gone soon.
    came = in_shared_memory() - before
    wait_until(lambda: not came & in_shared_memory())
