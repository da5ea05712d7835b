import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preflight.data.sampler import batch_indices
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
