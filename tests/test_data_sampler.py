import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preflight.data.diversity import episodes_per_batch
from preflight.data.sampler import WindowedOrder, batch_indices
from preflight.errors import UsageError


@given(n=st.integers(1, 200), batch_size=st.integers(1, 50), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_an_epoch_has_no_sample_twice_and_drops_only_the_rest(n, batch_size, seed, epoch):
    batch_size = min(n, batch_size)
    per_epoch = n // batch_size
    batches = [batch_indices(n, batch_size, seed, epoch * per_epoch + k) for k in range(per_epoch)]
    seen = np.concatenate(batches)
    assert seen.dtype == np.int64
    assert len(np.unique(seen)) == len(seen) == per_epoch * batch_size
    assert seen.min() >= 0
    assert seen.max() < n
    if n % batch_size == 0:
        assert sorted(seen) == list(range(n))


@given(order=st.permutations(range(12)))
def test_a_batch_does_not_depend_on_what_was_asked_before(order):
    expected = [batch_indices(10, 3, 1, k).tolist() for k in range(12)]
    assert {k: batch_indices(10, 3, 1, k).tolist() for k in order} == dict(enumerate(expected))


def test_the_order_is_fixed_for_ever():
    # A resumed run relies on it: a change here changes what every checkpoint continues with.
    assert batch_indices(10, 5, 42, 0).tolist() == [0, 1, 4, 2, 6]
    assert batch_indices(10, 5, 42, 1).tolist() == [8, 5, 9, 7, 3]


def test_epochs_and_seeds_are_shuffled_differently():
    assert batch_indices(1000, 1000, 0, 0).tolist() != batch_indices(1000, 1000, 0, 1).tolist()
    assert batch_indices(1000, 1000, 0, 0).tolist() != batch_indices(1000, 1000, 1, 0).tolist()


def test_writing_into_a_batch_leaves_the_next_call_alone():
    first = batch_indices(10, 10, 0, 0)
    kept = first.copy()
    first[:] = -1
    assert (batch_indices(10, 10, 0, 0) == kept).all()


def test_too_small_a_dataset_is_refused():
    with pytest.raises(UsageError, match="the dataset has 3 samples, less than one batch of 4") as error:
        batch_indices(3, 4, 0, 0)
    assert error.value.hint == "Set batch_size to at most 3."
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        batch_indices(3, 0, 0, 0)


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=20).map(lambda values: np.array(values, dtype=np.int64))


@given(length=lengths, window=st.integers(1, 25), batch_size=st.integers(1, 20), seed=st.integers(-3, 2**40))
def test_a_windowed_epoch_has_every_sample_once_window_by_window(length, window, batch_size, seed):
    n = int(length.sum())
    order = WindowedOrder(length, window, batch_size := min(n, batch_size), seed)
    per_epoch = n // batch_size
    seen = np.concatenate([order(per_epoch + k) for k in range(per_epoch)])
    assert seen.dtype == np.int64
    assert len(np.unique(seen)) == len(seen) == per_epoch * batch_size
    assert 0 <= seen.min() <= seen.max() < n
    episode = np.repeat(np.arange(len(length)), length)
    at = 0
    for episodes in order.windows(1):
        assert len(episodes) <= window
        part = seen[at : at + int(length[episodes].sum())]
        at += len(part)
        assert set(episode[part]) <= set(episodes.tolist())


def test_a_windowed_batch_depends_on_its_number_alone():
    length = np.full(9, 11)
    expected = [WindowedOrder(length, 3, 4, 7)(k).tolist() for k in range(60)]
    order = WindowedOrder(length, 3, 4, 7)
    for k in (59, 0, 24, 23, 48, 1):
        assert order(k).tolist() == expected[k]
        assert pickle.loads(pickle.dumps(order))(k).tolist() == expected[k]
    order(3)[:] = -1
    assert order(3).tolist() == expected[3]
    assert len(pickle.dumps(order)) < 1000
    epochs = [[e.tolist() for e in order.windows(epoch)] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]


def test_the_windowed_order_is_fixed_for_ever():
    assert WindowedOrder(np.array([3, 4, 5]), 2, 6, 42)(0).tolist() == [11, 1, 8, 2, 9, 7]
    assert WindowedOrder(np.array([3, 4, 5]), 2, 6, 42)(1).tolist() == [0, 10, 3, 6, 4, 5]


@pytest.mark.parametrize("window", [1, 3, 10, None])
def test_the_episodes_in_a_batch_are_as_many_as_told(window):
    length = np.random.default_rng(0).integers(5, 40, 23)
    n, batch_size, epochs = int(length.sum()), 16, 60
    episode = np.repeat(np.arange(len(length)), length)
    per_epoch = n // batch_size
    told, counted = [], []
    for epoch in range(epochs):
        order = None if window is None else WindowedOrder(length, window, batch_size, 5)
        told.append(episodes_per_batch(length, batch_size, None if order is None else order.windows(epoch)))
        for k in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            indices = batch_indices(n, batch_size, 5, k) if order is None else order(k)
            counted.append(len(np.unique(episode[indices])))
    error = np.std(counted) / np.sqrt(len(counted))
    assert abs(np.mean(counted) - np.mean(told)) < 4 * error + 1e-9
    assert (window is None) == (np.ptp(told) == 0)


def test_a_whole_epoch_in_a_batch_has_all_episodes():
    length = np.array([3, 4, 5])
    assert episodes_per_batch(length, 12) == pytest.approx(3)
    assert episodes_per_batch(length, 1) == pytest.approx(1)
    assert episodes_per_batch(length, 4, [np.array([1])]) * 3 == pytest.approx(1)
    assert episodes_per_batch(length, 12, [np.array([2]), np.array([0]), np.array([1])]) == pytest.approx(3)


def test_impossible_windows_are_refused():
    with pytest.raises(UsageError, match="the dataset has 3 samples, less than one batch of 4"):
        WindowedOrder(np.array([3]), 1, 4, 0)
    with pytest.raises(UsageError, match="data.shuffle_window must be at least 1 episode, got 0"):
        WindowedOrder(np.array([3]), 0, 2, 0)
