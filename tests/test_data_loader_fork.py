"""Workers that are forks of the loading process: any dataset, where a fork is safe. Under pytest it never is."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import loader_datasets as datasets
import psutil
import pytest
from command import environment, wait_until

import bench
from preflight.data import worker_fork
from preflight.data.loader import BatchLoader
from preflight.errors import UsageError

PROGRAM = """
import sys
import threading
from pathlib import Path
import numpy as np
import psutil
import bench
import loader_datasets as datasets
from preflight.data.loader import BatchLoader
from preflight.errors import PreflightError, UsageError

many = dict(batch_size=4, num_workers=2, start_method="fork")
alone = BatchLoader(datasets.Unpicklable(), batch_size=4, num_workers=0)
with BatchLoader(datasets.Unpicklable(), **many) as loader:
    assert len(loader.worker_pids()) == 2
    for _ in range(20):
        np.testing.assert_array_equal(next(loader)["x"], next(alone)["x"])
assert psutil.Process().children() == []  # no server either

folder = Path(sys.argv[1])
warnings = []
with BatchLoader(datasets.Killing(folder=folder), **many, max_worker_restarts=1, warn=warnings.append) as loader:
    seen = sorted(int(i) for _ in range(10) for i in next(loader)["deep"]["i"])
assert seen == list(range(40)), seen
assert len(warnings) == 1 and "killed by SIGKILL" in warnings[0], warnings

short = dict(max_seconds=0.8, rounds=1, attribution_s=0.2)
(folder / "killed").unlink()
ends = threading.Event()
with BatchLoader(datasets.Killing(folder=folder), **many, max_worker_restarts=1) as loader:
    threading.Thread(target=ends.wait, name="a-viewer").start()
    try:
        for _ in range(10):
            next(loader)
        raise SystemExit("no worker died")
    except PreflightError as error:
        assert "none can be forked in its place now: other threads run: a-viewer" in error.message, error.message
    finally:
        ends.set()

result = bench.sweep(datasets.Unpicklable(), batch_size=4, workers=(1, 2), start_method="fork", **short)
assert [point.num_workers for point in result.points] == [1, 2]
assert result.to_json()["start_method"] == "fork"
assert result.points[0].pss_mib > 0
assert psutil.Process().children() == []

try:
    BatchLoader(datasets.Unpicklable(), batch_size=4, num_workers=1)
except UsageError as error:
    print(error.hint)
"""


def program(tmp_path, text):
    (tmp_path / "program.py").write_text(text)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(bench.__file__).parent.parent)])
    return [sys.executable, tmp_path / "program.py", str(tmp_path)], environment(PYTHONPATH=path)


def test_a_dataset_that_cannot_be_pickled_is_loaded_restarted_and_measured(tmp_path):
    command, env = program(tmp_path, PROGRAM)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "or start_method='fork', safe here until JAX or a thread starts" in done.stdout
    assert done.stderr == ""


def test_forked_workers_end_with_a_parent_that_is_killed(tmp_path):
    text = """
import time
import loader_datasets as datasets
from preflight.data.loader import BatchLoader
loader = BatchLoader(datasets.Sleepy(), batch_size=4, num_workers=2, start_method="fork")
print(*loader.worker_pids(), flush=True)
time.sleep(60)
"""
    command, env = program(tmp_path, text)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        workers = [psutil.Process(pid) for pid in pids]
        parent.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    wait_until(lambda: not any(worker.is_running() for worker in workers))


class Bridge:
    """Of JAX, as `fork_hazard` looks at it."""

    _backends = {"cpu": object()}  # noqa: RUF012


def test_where_a_fork_is_not_safe_it_is_refused_and_not_suggested(monkeypatch):
    # Another test may have started JAX in this process.
    monkeypatch.delitem(sys.modules, "jax._src.xla_bridge", raising=False)
    ends = threading.Event()
    thread = threading.Thread(target=ends.wait, name="a-viewer")
    thread.start()
    try:
        assert "a-viewer" in worker_fork.fork_hazard()
        with pytest.raises(UsageError, match=r"cannot be forked from this process: other threads run: .*a-viewer"):
            BatchLoader(datasets.Numbers(), batch_size=4, num_workers=1, start_method="fork")
        with pytest.raises(UsageError, match="its attribute function") as caught:
            BatchLoader(datasets.Unpicklable(), batch_size=4, num_workers=1)
        assert "a fork is not safe here (other threads run: " in caught.value.hint
    finally:
        ends.set()
        thread.join()

    monkeypatch.setitem(sys.modules, "jax._src.xla_bridge", Bridge)
    assert worker_fork.fork_hazard() == "JAX has started, and its threads hold locks"
    with pytest.raises(UsageError, match="start_method must be forkserver or fork, got spawn"):
        BatchLoader(datasets.Numbers(), batch_size=4, num_workers=1, start_method="spawn")


def test_jax_that_has_started_is_seen():
    import jax

    jax.devices()
    assert worker_fork.fork_hazard() == "JAX has started, and its threads hold locks"
