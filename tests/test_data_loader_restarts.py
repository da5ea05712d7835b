"""Workers that die: which sample it was, and that their batches are done again."""

import os
import signal

import loader_datasets as datasets
import numpy as np
import psutil
import pytest

from preflight.data.loader import BatchLoader
from preflight.data.sampler import batch_indices
from preflight.errors import PreflightError, UsageError


def assert_batches(loader, numbers, *, length=40):
    for number in numbers:
        np.testing.assert_array_equal(next(loader)["deep"]["i"], batch_indices(length, 4, 0, number))


def test_killed_workers_are_restarted_and_no_batch_is_lost_or_repeated():
    told = []
    arguments = {"batch_size": 4, "num_workers": 2, "max_worker_restarts": 3, "warn": told.append}
    with BatchLoader(datasets.Numbers(400), **arguments) as loader:
        killed = []
        for turn in range(3):
            assert_batches(loader, range(20 * turn, 20 * turn + 20), length=400)
            killed.append((turn % 2, loader.worker_pids()[turn % 2]))
            os.kill(killed[-1][1], signal.SIGKILL)
        assert_batches(loader, range(60, 80), length=400)
        assert set(loader.worker_pids()).isdisjoint(pid for _, pid in killed)
        assert len(loader.worker_pids()) == 2
        for pid in loader.worker_pids():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(PreflightError, match="was killed by SIGKILL.*; 3 had been restarted before") as error:
            assert_batches(loader, range(80, 120), length=400)
        with pytest.raises(PreflightError) as again:
            next(loader)
    assert again.value.message == error.value.message
    assert len(told) == 3
    for number, ((worker, pid), line) in enumerate(zip(killed, told, strict=True)):
        assert line.startswith(f"loader worker {worker} of 2 (pid {pid}) was killed by SIGKILL")
        assert line.endswith(f"; restarting it ({number + 1} of 3 restarts)")


@pytest.mark.parametrize("kind", [datasets.Killing, datasets.KillingTogether])
def test_a_sample_that_kills_once_costs_one_restart(kind, tmp_path):
    told = []
    arguments = {"batch_size": 4, "num_workers": 2, "max_worker_restarts": 3, "warn": told.append}
    with BatchLoader(kind(folder=tmp_path), **arguments) as loader:
        assert_batches(loader, range(20))
    assert len(told) == 1
    batch = next(batch_indices(40, 4, 0, k) for k in range(10) if 7 in batch_indices(40, 4, 0, k))
    read = f"samples {', '.join(map(str, batch))}" if kind is datasets.KillingTogether else "sample 7"
    assert f" was killed by SIGKILL while it read {read}; restarting" in told[0]


@pytest.mark.parametrize("kind", [datasets.Killing, datasets.KillingTogether])
def test_a_sample_that_kills_every_time_ends_the_loading_and_is_named(kind):
    told = []
    arguments = {"batch_size": 4, "num_workers": 1, "max_worker_restarts": 2, "warn": told.append}
    with BatchLoader(kind(), **arguments) as loader:
        with pytest.raises(PreflightError, match="while it read sample 7; 2 had been restarted before"):
            assert_batches(loader, range(20))
        assert loader.worker_pids()
    assert len(told) == 2


def test_the_death_of_the_server_costs_all_workers_and_no_batch():
    told = []
    arguments = {"batch_size": 4, "num_workers": 2, "max_worker_restarts": 2, "warn": told.append}
    with BatchLoader(datasets.Numbers(400), **arguments) as loader:
        assert_batches(loader, range(10), length=400)
        before = [psutil.Process(pid) for pid in loader.worker_pids()]
        os.kill(before[0].ppid(), signal.SIGKILL)
        assert psutil.wait_procs(before, timeout=10)[1] == []
        assert_batches(loader, range(10, 40), length=400)
    assert len(told) == 2


def test_a_dataset_that_ends_its_process_is_reported_with_its_exit_code():
    with (
        BatchLoader(datasets.Exiting(), batch_size=4, num_workers=1) as loader,
        pytest.raises(PreflightError, match=r"\(pid \d+\) ended with exit code 9 while it read sample \d+$"),
    ):
        next(loader)


def test_a_negative_number_of_restarts_is_refused():
    with pytest.raises(UsageError, match="max_worker_restarts must be at least 0, got -1"):
        BatchLoader(datasets.Numbers(), batch_size=4, num_workers=0, max_worker_restarts=-1)
