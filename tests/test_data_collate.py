import numpy as np
import pytest

from preflight.data.collate import pack, unpack
from preflight.errors import DataError


def block(size):
    return np.full(size, 255, np.uint8)


def test_a_shared_array_is_stored_once():
    black = np.zeros((100, 7), np.uint8)
    samples = [{"black": black, "own": np.full((3,), i, np.int16)} for i in range(8)]
    leaves, memory = pack(range(8), samples, block)
    assert memory.nbytes == 704 + 64  # 700 and 48 bytes, each in whole cache lines
    batch = unpack(leaves, memory)
    assert batch["black"].shape == (8, 100, 7)
    assert not batch["black"].any()
    assert not batch["black"].flags.writeable
    np.testing.assert_array_equal(batch["own"], np.repeat(np.arange(8), 3).reshape(8, 3))
    assert batch["own"].dtype == np.int16
    assert batch["own"].flags.writeable


def test_arrays_begin_at_cache_lines_and_may_be_empty():
    sample = {"a": np.bool_(True), "b": {"c": np.ones((0, 3)), "d": np.arange(5.0)}, "e": 3}
    leaves, memory = pack([4, 5], [sample, dict(sample)], block)
    assert [leaf.offset % 64 for leaf in leaves] == [0, 0, 0, 0]
    batch = unpack(leaves, memory)
    assert batch["a"].tolist() == [True, True]
    assert batch["b"]["c"].shape == (2, 0, 3)
    assert batch["b"]["d"].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert batch["e"].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"b": np.zeros(2)}, "sample 9 has other keys than sample 3: b"),
        ({"a": np.zeros(2), "b": np.zeros(2)}, "sample 9 has other keys than sample 3: a, b"),
        ({}, "sample 9 has other keys than sample 3: "),
        ({"a": np.zeros(2, np.float32)}, "sample 9: a is float32[2], but float64[2] in sample 3"),
        ({"a": [[1], [1, 2]]}, "sample 9: a is no array ("),
    ],
)
def test_samples_that_differ_are_named(second, message):
    with pytest.raises(DataError) as error:
        pack([3, 9], [{"a": np.zeros(2)}, second], block)
    assert error.value.message.startswith(message)
