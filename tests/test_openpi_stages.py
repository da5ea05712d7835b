"""The stages of openpi's samples: together they are what the samples are."""

import pickle

import numpy as np
import openpi_fork
import pytest
from openpi_fork import load, write_stats

from preflight.runs.openpi.open_videos import OpenVideos, keep_videos_open

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


def lerobots(dataset):
    raw = dataset._raw
    while not hasattr(raw, "_query_videos"):
        raw = raw._dataset
    return raw


def test_videos_stay_open_where_lerobot_decodes_by_pyav(dataset):
    raw = lerobots(dataset)
    assert isinstance(raw._query_videos, OpenVideos) == (raw.video_backend == "pyav")


@pytest.fixture
def by_pyav(dataset, monkeypatch):
    """LeRobot's dataset in the samples, which decodes by PyAV, also where torchcodec finds FFmpeg's libraries."""
    raw = lerobots(dataset)
    monkeypatch.setattr(raw, "video_backend", "pyav")
    monkeypatch.setitem(vars(raw), "_query_videos", None)  # to be as it was in the end
    del vars(raw)["_query_videos"]
    assert keep_videos_open(dataset._raw)
    return raw


def test_videos_stay_open_and_every_pixel_is_lerobots(by_pyav):
    raw = by_pyav
    assert isinstance(raw._query_videos, OpenVideos)
    theirs = type(raw)._query_videos
    for index in (0, 220, 221, 222, 300, 497):
        row = raw.hf_dataset[index]
        episode, at = row["episode_index"].item(), row["timestamp"].item()
        later = at + 1 / raw.fps if index not in (220, 497) else at - 1 / raw.fps
        for times in ([at], [at, later]):
            asked = dict.fromkeys(raw.meta.video_keys, times)
            expected, found = theirs(raw, asked, episode), raw._query_videos(asked, episode)
            for key in asked:
                assert (found[key].dtype, found[key].stride()) == (expected[key].dtype, expected[key].stride())
                np.testing.assert_array_equal(found[key].numpy(), expected[key].numpy())


def test_what_is_not_lerobots_own_decoding_by_pyav_is_left_alone(by_pyav, dataset, monkeypatch):
    raw = by_pyav
    monkeypatch.delattr(raw, "_query_videos")  # of the instance
    assert keep_videos_open(dataset._raw)
    monkeypatch.delattr(raw, "_query_videos")
    monkeypatch.setattr(raw, "video_backend", "torchcodec")
    assert not keep_videos_open(raw)
    monkeypatch.setattr(raw, "video_backend", "pyav")

    def of_a_user(self, query_timestamps, ep_idx):
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(type(raw), "_query_videos", of_a_user)
        assert not keep_videos_open(raw)
    # Another picture than LeRobot's: it decodes itself.
    with monkeypatch.context() as patched:
        patched.setattr("preflight.runs.openpi.open_videos.read_frames", _black)
        assert not keep_videos_open(raw)
        patched.setattr("preflight.runs.openpi.open_videos.read_frames", _fails)
        assert not keep_videos_open(raw)
    assert not keep_videos_open([1, 2, 3])
    assert not isinstance(raw._query_videos, OpenVideos)
    assert keep_videos_open(raw)


def _black(wanted, tolerance_s):
    return [np.zeros((480, 640, 3), np.uint8) for _ in wanted]


def _fails(wanted, tolerance_s):
    raise OSError("not today")
