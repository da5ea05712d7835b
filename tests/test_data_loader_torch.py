"""Datasets that use torch, or draw random numbers: what a worker gives them."""

import random
from multiprocessing import forkserver

import loader_datasets as datasets
import numpy as np
import pytest
import torch

from preflight.data.loader import BatchLoader
from preflight.data.sampler import batch_indices


@pytest.fixture(scope="module", autouse=True)
def worker_server():
    """A worker server of this module's own, started when torch was loaded here: it has loaded it, too."""
    forkserver._forkserver._stop()  # there for tests


def test_a_worker_is_a_light_single_threaded_fork():
    with BatchLoader(datasets.Surroundings(), batch_size=2, num_workers=2) as loader:
        for batch in (next(loader), next(loader)):
            assert not batch["jax"].any()
            assert batch["forked_from_preloaded_server"].all()
            assert batch["ignores_sigint"].all()
            assert batch["torch_threads"].tolist() == [1, 1]


def drawn(count, **arguments):
    with BatchLoader(datasets.Augmented(), batch_size=4, **arguments) as loader:
        return np.stack([next(loader)["drawn"] for _ in range(count)])


def test_random_numbers_are_those_of_the_batch_whoever_reads_it():
    alone = drawn(6, num_workers=0, seed=3)
    np.testing.assert_array_equal(drawn(6, num_workers=2, seed=3), alone)
    np.testing.assert_array_equal(drawn(2, num_workers=1, seed=3, start_batch=4), alone[4:])
    assert np.unique(alone).size == alone.size  # no two samples draw the same
    assert np.intersect1d(alone, drawn(6, num_workers=0, seed=4)).size == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_callers_random_state_is_left_alone(num_workers):
    def draw():
        return np.random.rand(), random.random(), torch.rand(1).item()

    def seed():
        np.random.seed(1), random.seed(1), torch.manual_seed(1)

    seed()
    expected = draw()
    seed()
    drawn(2, num_workers=num_workers)
    assert draw() == expected


def test_torchs_worker_info_answers():
    with BatchLoader(datasets.WorkerInfo(), batch_size=2, num_workers=2, seed=5) as loader:
        rows = np.concatenate([next(loader) for _ in range(8)])
    assert set(map(tuple, rows.tolist())) <= {(0, 2, 5, 1), (1, 2, 6, 1)}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_tensors_become_arrays(num_workers):
    with BatchLoader(datasets.Tensors(), batch_size=2, num_workers=num_workers) as loader:
        batch = next(loader)["x"]
    assert (type(batch), batch.dtype, batch.shape) == (np.ndarray, np.int64, (2, 3))
    np.testing.assert_array_equal(batch[:, 0], batch_indices(40, 2, 0, 0))
