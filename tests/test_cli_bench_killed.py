"""`preflight bench-loader` whose worker is killed from outside: what it says, keeps and leaves."""

import json
import os
import signal
import subprocess

import psutil
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
