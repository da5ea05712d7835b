import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import loader_datasets as datasets
import numpy as np
import psutil
import pytest

from preflight.data.loader import BatchLoader
from preflight.data.sampler import batch_indices
from preflight.errors import DataError, PreflightError, UsageError
from preflight.telemetry.descriptors import open_descriptors


def flat(batch):
    if isinstance(batch, dict):
        return {f"{key}/{inner}": value for key, sub in batch.items() for inner, value in flat(sub).items()}
    return {"": batch}


def take(loader, count):
    return [flat(next(loader)) for _ in range(count)]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


def processes_left():
    """Descendants of this process that are gone in a moment are not left."""
    me = psutil.Process()
    # The worker server and multiprocessing's resource tracker stay for the next loader; they are direct children.
    grandchildren = {p for child in me.children() for p in child.children(recursive=True)}
    psutil.wait_procs(grandchildren, timeout=5)
    return [p for p in grandchildren if p.is_running()]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_batches_are_those_of_the_sampler(num_workers):
    with BatchLoader(datasets.Numbers(40), batch_size=6, num_workers=num_workers, seed=3) as loader:
        assert len(loader.worker_pids()) == num_workers
        batches = [next(loader) for _ in range(15)]  # more than two epochs
    for k, batch in enumerate(batches):
        indices = batch_indices(40, 6, 3, k)
        assert batch["x"].dtype == np.float32
        np.testing.assert_array_equal(batch["x"], np.broadcast_to(indices[:, None, None], (6, 3, 2)))
        np.testing.assert_array_equal(batch["deep"]["i"], indices)
        assert batch["deep"]["i"].dtype == np.int64
        np.testing.assert_array_equal(batch["deep"]["even"], indices % 2 == 0)
    assert processes_left() == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_loader_goes_on_with_the_same_batches(num_workers):
    arguments = {"batch_size": 7, "num_workers": num_workers, "seed": 1}
    with BatchLoader(datasets.Numbers(), **arguments) as loader:
        whole = take(loader, 12)
    with BatchLoader(datasets.Numbers(), start_batch=8, **arguments) as loader:
        assert_same(take(loader, 4), whole[8:])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_samples_may_be_arrays(num_workers):
    with BatchLoader(datasets.PlainArrays(), batch_size=5, num_workers=num_workers) as loader:
        np.testing.assert_array_equal(next(loader), batch_indices(40, 5, 0, 0)[:, None] + np.arange(4))


def test_batches_outlive_the_loader():
    with BatchLoader(datasets.Numbers(), batch_size=4, num_workers=1) as loader:
        batch, other = next(loader), next(loader)
    del loader, other
    np.testing.assert_array_equal(batch["deep"]["i"], batch_indices(40, 4, 0, 0))
    batch["x"][:] = 1
    assert batch["x"].sum() == 24


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")
def test_a_worker_keeps_the_memory_of_a_frame_for_the_next():
    with BatchLoader(datasets.LargeTemporaries(), batch_size=20, num_workers=1) as loader:
        assert np.median(next(loader)["faults"]) < 100  # of 1953 pages


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_failing_sample_is_named(num_workers):
    with BatchLoader(datasets.BadSample(), batch_size=40, num_workers=num_workers) as loader:
        with pytest.raises(DataError) as error:
            next(loader)
        message = r"sample 7 cannot be loaded: ValueError: bad frame (loader_datasets.py, line "
        assert error.value.message.startswith(message)
        assert "Traceback" in error.value.__notes__[0]
    assert processes_left() == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_datasets_own_message_and_hint_come_through(num_workers):
    loader = BatchLoader(datasets.DamagedFile(), batch_size=40, num_workers=num_workers)
    with loader, pytest.raises(DataError) as error:
        next(loader)
    assert error.value.message == "sample 7 cannot be loaded: video.mp4 is cut off"
    assert error.value.hint == "fetch it again"


def test_samples_that_do_not_stack_are_named():
    with BatchLoader(datasets.OddShape(), batch_size=40, num_workers=0) as loader:
        first = int(batch_indices(40, 40, 0, 0)[0])
        with pytest.raises(DataError, match=rf"^sample 7: x is float64\[4\], but float64\[3\] in sample {first}\b"):
            next(loader)
    with (
        BatchLoader(datasets.Strings(), batch_size=40, num_workers=0) as loader,
        pytest.raises(DataError, match=r"task holds str, not numbers"),
    ):
        next(loader)


def test_a_worker_killed_from_outside_is_reported():
    with BatchLoader(datasets.Numbers(10_000), batch_size=4, num_workers=2) as loader:
        next(loader)
        victim = loader.worker_pids()[1]
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(PreflightError) as error:
            take(loader, 100)
    assert error.value.message.startswith(f"loader worker 1 of 2 (pid {victim}) was killed by SIGKILL")
    assert "RAM" in error.value.hint
    assert processes_left() == []


def test_a_worker_that_dies_before_its_first_batch_is_reported():
    with (
        BatchLoader(datasets.Suicidal(), batch_size=4, num_workers=1) as loader,
        pytest.raises(
            PreflightError, match=r"^loader worker 0 of 1 \(pid \d+\) was killed by SIGKILL while it read "
        ) as error,
    ):
        next(loader)
    assert error.value.message.endswith(f" sample {batch_indices(40, 4, 0, 0)[0]}")


def test_a_stuck_dataset_times_out_and_is_ended():
    with BatchLoader(datasets.Sleepy(), batch_size=4, num_workers=2, timeout_s=0.5) as loader:
        pids = loader.worker_pids()
        with pytest.raises(PreflightError, match=r"no batch came from the loader's 2 worker.* within 0.5 s"):
            next(loader)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert processes_left() == []


def hung(dataset, timeout_s=0.5):
    with BatchLoader(dataset, batch_size=4, num_workers=2, timeout_s=timeout_s) as loader:
        pids = loader.worker_pids()
        with pytest.raises(PreflightError) as error:
            next(loader)
    assert processes_left() == []
    return error.value, pids


def test_stuck_workers_tell_where_they_are():
    error, pids = hung(datasets.Sleepy())
    assert re.search(
        r"; worker 0 is at loader_datasets\.py, line \d+, in __getitem__: time\.sleep\(600\)$", error.message
    )
    assert error.hint.startswith("Reading is stuck or very slow. Likely causes: ")
    for number, pid in enumerate(pids):
        assert error.__notes__[number].startswith(
            f"worker {number} (pid {pid}), innermost first:\n  loader_datasets.py"
        )


def test_a_lock_is_the_first_cause_named_where_workers_wait_for_one():
    error, _ = hung(datasets.Locked())
    assert "in __getitem__: with lock:" in error.message
    assert "Likely causes: a lock that another thread held" in error.hint


def test_a_worker_that_has_not_begun_is_not_killed_by_the_question():
    error, pids = hung(datasets.SlowToUnpickle(), timeout_s=1.5)
    assert error.message.endswith("within 1.5 s")
    assert error.__notes__[0] == (
        f"worker 0 (pid {pids[0]}): it has not begun to read: it still imports or unpickles the dataset"
    )


def test_asking_a_worker_that_nobody_hears_does_it_no_harm():
    with BatchLoader(datasets.Numbers(10_000), batch_size=4, num_workers=1) as loader:
        next(loader)
        (pid,) = loader.worker_pids()
        # As a scheduler does that warns all processes of a job; the pipe is full after some dozens.
        for _ in range(300):
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.001)
        assert len(take(loader, 20)) == 20


def test_close_ends_workers_that_were_never_asked():
    loader = BatchLoader(datasets.Numbers(), batch_size=4, num_workers=2)
    pids = loader.worker_pids()
    loader.close()
    loader.close()
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert loader.worker_pids() == ()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_workers_end_when_the_training_process_is_killed():
    script = (
        "from loader_datasets import Numbers\n"
        "from preflight.data.loader import BatchLoader\n"
        "if __name__ == '__main__':\n"
        "    loader = BatchLoader(Numbers(), batch_size=4, num_workers=2)\n"
        "    next(loader)\n"
        "    print(*loader.worker_pids(), flush=True)\n"
        "    import time; time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    with trainer:
        workers = [psutil.Process(int(pid)) for pid in trainer.stdout.readline().split()]
        family = psutil.Process(trainer.pid).children(recursive=True)
        assert len(workers) == 2
        assert set(workers) <= set(family)
        trainer.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_an_interrupt_of_the_process_group_leaves_the_workers_to_the_parent():
    with BatchLoader(datasets.Numbers(10_000), batch_size=4, num_workers=2) as loader:
        next(loader)
        server = psutil.Process(loader.worker_pids()[0]).ppid()
        for pid in (*loader.worker_pids(), server):
            os.kill(pid, signal.SIGINT)
        time.sleep(0.2)
        assert len(take(loader, 20)) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 41}, "the dataset has 40 samples, less than one batch of 41"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"prefetch_factor": 0}, "prefetch_factor must be at least 1, got 0"),
        ({"start_batch": -1}, "start_batch must be at least 0, got -1"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        BatchLoader(datasets.Numbers(), **{"batch_size": 4, "num_workers": 0, **arguments})


def test_a_dataset_that_cannot_be_pickled_is_refused():
    def refuse():
        with pytest.raises(UsageError, match=r"to loader workers: its attribute function \(function\): .*lambda"):
            BatchLoader(datasets.Unpicklable(), batch_size=4, num_workers=1)
        return open_descriptors()

    assert refuse() >= refuse()  # nothing stays open
    assert processes_left() == []
