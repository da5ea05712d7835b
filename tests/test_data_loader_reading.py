"""How a batch's samples are read: together, past bad ones, in a given order."""

import loader_datasets as datasets
import numpy as np
import pytest

from preflight.data.loader import BatchLoader
from preflight.data.sampler import batch_indices
from preflight.errors import DataError, UsageError

IN_ORDER = {"batch_size": 4, "order": lambda k: np.arange(4 * k, 4 * k + 4) % 40}


def take(loader, count):
    return [next(loader) for _ in range(count)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_that_reads_samples_together_is_asked_so(num_workers):
    with BatchLoader(datasets.Together(), batch_size=5, num_workers=num_workers) as loader:
        batch = next(loader)
    assert batch["together"].tolist() == [5] * 5
    np.testing.assert_array_equal(batch["deep"]["i"], batch_indices(40, 5, 0, 0))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_failure_of_samples_read_together_names_the_one(num_workers):
    loader = BatchLoader(datasets.BadTogether(), batch_size=40, num_workers=num_workers)
    with loader, pytest.raises(DataError, match="^sample 7 cannot be loaded: ValueError: bad frame "):
        next(loader)


def test_samples_that_are_missing_are_noticed():
    loader = BatchLoader(datasets.MissingTogether(), batch_size=4, num_workers=0)
    with loader, pytest.raises(DataError, match="^__getitems__ gave 3 samples for 4 indices"):
        next(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_may_be_given(num_workers):
    with BatchLoader(datasets.Numbers(), num_workers=num_workers, start_batch=1, **IN_ORDER) as loader:
        assert [next(loader)["deep"]["i"].tolist() for _ in range(2)] == [[4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_skipped_named_and_counted_once(num_workers):
    told = []
    dataset = datasets.Damaged(bad=(6, 7, 39))
    arguments = {"on_bad_sample": "skip", "max_skipped": 3, "warn": told.append}
    with BatchLoader(dataset, num_workers=num_workers, **IN_ORDER, **arguments) as loader:
        batches = [next(loader)["deep"]["i"].tolist() for _ in range(20)]  # two epochs
        assert loader.skipped == 3
    assert batches[1] == batches[11] == [4, 5, 8, 8]
    assert batches[9] == batches[19] == [36, 37, 38, 0]
    assert told == [
        f"sample {bad} cannot be loaded and is skipped ({count} of at most 3); sample {good} takes its place: "
        f"frame {bad} does not decode"
        for count, bad, good in [(1, 7, 8), (2, 6, 8), (3, 39, 0)]
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_samples_end_the_loading(num_workers):
    arguments = {"on_bad_sample": "skip", "max_skipped": 1, "warn": lambda line: None}
    with BatchLoader(datasets.Damaged(bad=(2, 30)), num_workers=num_workers, **IN_ORDER, **arguments) as loader:
        with pytest.raises(DataError) as error:
            take(loader, 10)
        assert error.value.message == (
            "2 samples cannot be loaded, and max_skipped is 1; the last one is sample 30: frame 30 does not decode"
        )
    with BatchLoader(datasets.Damaged(bad=range(10, 20)), num_workers=num_workers, **IN_ORDER, **arguments) as loader:
        take(loader, 2)
        with pytest.raises(DataError, match="sample 10 .*: frame 11 .*one of 2 bad samples in a row, from 10 on"):
            next(loader)


def test_a_dataset_of_bad_samples_alone_ends_the_loading():
    dataset = datasets.Damaged(length=4, bad=range(4))
    loader = BatchLoader(dataset, batch_size=4, num_workers=0, on_bad_sample="skip")
    with loader, pytest.raises(DataError, match="4 bad samples in a row"):
        next(loader)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_mistakes_of_the_program_are_not_skipped(num_workers):
    loader = BatchLoader(datasets.BadSample(), num_workers=num_workers, on_bad_sample="skip", **IN_ORDER)
    with loader, pytest.raises(DataError, match="^sample 7 cannot be loaded: ValueError: bad frame "):
        take(loader, 2)


def test_impossible_policies_are_refused():
    with pytest.raises(UsageError, match="on_bad_sample must be raise or skip, got ignore"):
        BatchLoader(datasets.Numbers(), batch_size=4, num_workers=0, on_bad_sample="ignore")
    with pytest.raises(UsageError, match="max_skipped must be at least 0, got -1"):
        BatchLoader(datasets.Numbers(), batch_size=4, num_workers=0, max_skipped=-1)


def test_a_slow_batch_does_not_hold_up_the_other_worker(tmp_path):
    slow = int(batch_indices(40, 1, 0, 0)[0])
    dataset = datasets.Waiting(folder=tmp_path, until=slow)
    with BatchLoader(dataset, batch_size=1, num_workers=2, prefetch_factor=4, timeout_s=20) as loader:
        assert [int(next(loader)["deep"]["i"][0]) for _ in range(8)] == [
            int(batch_indices(40, 1, 0, k)[0]) for k in range(8)
        ]
