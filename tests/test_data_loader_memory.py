"""The shared memory that batches lie in: used again, never while somebody looks, and gone with its processes."""

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import loader_datasets as datasets
import numpy as np
import psutil
import pytest

from preflight.data.loader import BatchLoader
from preflight.data.sampler import batch_indices
from preflight.data.shared_array import SharedArray
from preflight.data.worker_pool import HELD_SLOTS
from preflight.telemetry.descriptors import open_descriptors

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shared memory is a memfd")


def slots(pid="self"):
    """The slots that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "/memfd:preflight" in line}


def is_batch(batch, number, *, batch_size=2, length=40):
    expected = batch_indices(length, batch_size, 0, number)
    return batch.shape[0] == batch_size and bool((batch == expected[:, None]).all())


def test_memory_is_used_again():
    before = slots()
    with BatchLoader(datasets.Large(), batch_size=2, num_workers=2) as loader:
        for number in range(40):
            batch = next(loader)
            assert is_batch(batch["x"], number)
        # What is under way, the batch in use and the one that takes its place; and the workers' places.
        assert 3 <= len(slots() - before) <= 2 * 2 + 2 + 1
        assert all(slots(pid) for pid in loader.worker_pids())


def test_batches_that_are_held_are_never_overwritten():
    before = slots()
    with BatchLoader(datasets.Large(), batch_size=2, num_workers=2) as loader:
        held = [next(loader)["x"] for _ in range(30)]
        assert len(slots() - before) <= 2 * 2 + HELD_SLOTS + 1
        kept = held[7][1, 5:9]  # a view keeps the whole
        expected = kept.copy()
        assert all(is_batch(batch, number) for number, batch in enumerate(held))
        del held
        for number in range(30, 70):
            assert is_batch(next(loader)["x"], number)
        np.testing.assert_array_equal(kept, expected)


def test_a_jax_array_keeps_the_memory_that_it_took_over():
    import jax

    with BatchLoader(datasets.Large(), batch_size=2, num_workers=1) as loader:
        for _ in range(4):  # the first ones come through the pipe
            host = next(loader)["x"]
        device = jax.device_put(host, jax.devices("cpu")[0])
        assert device.unsafe_buffer_pointer() == host.ctypes.data, "jax made a copy: this test would prove nothing"
        del host
        for number in range(4, 40):
            assert is_batch(next(loader)["x"], number)
        assert is_batch(np.asarray(device), 3)


def test_batches_of_any_size_are_whole():
    with BatchLoader(datasets.Growing(), batch_size=1, num_workers=2) as loader:
        held = []
        for number in range(120):
            batch, (index,) = next(loader)["x"], batch_indices(40, 1, 0, number)
            assert batch.shape == (1, 100 * index)
            assert (batch == index).all()
            held = [*held[-3:], (batch, index)]
            assert all((one == value).all() for one, value in held)


def test_without_memfd_batches_take_the_pipe_and_that_is_said_once(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    told = []
    with BatchLoader(datasets.Large(), batch_size=2, num_workers=2, warn=told.append) as loader:
        assert all(is_batch(next(loader)["x"], number) for number in range(12))
    assert told == [
        "batches are copied through pipes, for want of shared memory (this system has no memfd); loading may be slower"
    ]


def test_memory_that_the_system_refuses_is_said_and_done_without():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
        with BatchLoader(datasets.Large(), batch_size=2, num_workers=2, warn=told.append) as loader:
            assert all(is_batch(next(loader)["x"], number) for number in range(12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(told) == 1
    assert "for want of shared memory (File too large)" in told[0]


def test_nothing_is_left():
    def named(pids):
        return [
            line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/dev/shm" in line
        ]

    def load():
        with BatchLoader(datasets.Large(), batch_size=2, num_workers=2, max_worker_restarts=1) as loader:
            for _ in range(6):
                next(loader)
            os.kill(loader.worker_pids()[0], signal.SIGKILL)
            for _ in range(6):
                next(loader)
            assert named(loader.worker_pids()) == []
        return open_descriptors(), len(slots())

    before = named(["self"])
    assert load() == load()
    assert named(["self"]) == before


def test_workers_of_a_process_without_torch_have_none():
    code = (
        "from loader_datasets import Libraries\n"
        "from preflight.data.loader import BatchLoader\n"
        "if __name__ == '__main__':\n"
        "    with BatchLoader(Libraries(), batch_size=1, num_workers=1) as loader:\n"
        "        print({name: bool(there[0]) for name, there in next(loader).items()})\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert result.stdout.strip() == "{'torch': False, 'jax': False, 'pyarrow.parquet': True, 'av': True}"


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
SCRIPT = """
import os, sys
from loader_datasets import Numbers
from preflight.data.loader import BatchLoader
if __name__ == '__main__':
    loader = BatchLoader(Numbers(), batch_size=4, num_workers=2)
    next(loader)
    print(*loader.worker_pids(), flush=True)
    {rest}
"""


def run(rest):
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT.format(rest=rest)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    workers = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended already
            workers.append(psutil.Process(pid))
    return process, workers


@pytest.mark.parametrize("rest", ["pass", "del loader; import gc; gc.collect(); sys.stdin.read()", "raise SystemExit"])
def test_a_loader_that_nobody_closes_ends_its_workers(rest):
    process, workers = run(rest)
    if "stdin" in rest:
        assert psutil.wait_procs(workers, timeout=10)[1] == []
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_a_fork_of_the_parent_neither_ends_the_workers_nor_keeps_them():
    rest = (
        "child = os.fork()\n"
        "    if not child:\n"
        "        loader.close(); del loader; os.write(1, b'closed\\n'); sys.stdin.read(); os._exit(0)\n"
        "    os.write(1, b'%d\\n' % len(next(loader)['x']))\n"
        "    import time; time.sleep(600)\n"
    )
    process, workers = run(rest)
    said = sorted(process.stdout.readline().strip() for _ in range(2))
    assert said == ["4", "closed"]
    process.kill()  # the child lives on, and with it the parent's ends of all pipes
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    process.communicate(timeout=20)


def test_a_shared_array_is_written_by_its_receivers_only_where_it_says_so():
    ours = SharedArray((3,), np.dtype(np.int64), writable=True)
    theirs = pickle.loads(pickle.dumps(ours))
    theirs.array[1] = 5
    assert ours.array.tolist() == [0, 5, 0]
    closed = SharedArray((3,), np.dtype(np.int64))
    with pytest.raises(ValueError, match="read-only"):
        pickle.loads(pickle.dumps(closed)).array[1] = 5
