"""The stages of openpi's samples: together they are what the samples are."""

import pickle

import numpy as np
import openpi_fork
import pytest
from openpi_fork import load, write_stats

pytestmark = openpi_fork.MARKS


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with openpi_fork.opened(tmp_path_factory):
        folder = tmp_path_factory.mktemp("healthy")
        write_stats(load(folder, name="g1_small"))
        yield load(folder, name="g1_small").dataset()


def leaves(sample):
    if not isinstance(sample, dict):
        return [sample]
    return [leaf for key in sorted(sample) for leaf in leaves(sample[key])]


def test_reading_and_transforming_are_told_apart_and_make_the_sample(dataset):
    value = 5
    stages = pickle.loads(pickle.dumps(dataset)).sample_stages()
    assert [name for name, _ in stages] == ["decode", "transform"]
    for _, stage in stages:
        value = stage(value)
    expected = dataset[5]
    assert value.keys() == expected.keys()
    for ours, whole in zip(leaves(value), leaves(expected), strict=True):
        assert ours.dtype == whole.dtype
        np.testing.assert_array_equal(ours, whole)
