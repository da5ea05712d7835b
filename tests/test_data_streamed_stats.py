"""Statistics of values that are gone through in blocks, against numpy's of all values at once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from healthy import EXAMPLE
from hypothesis import given
from hypothesis import strategies as st
from test_data_transforms import assert_stats, explicit

from preflight.data import quantile_search, streamed_stats
from preflight.data.actions import action_chunk_indices, delta_mask, to_delta
from preflight.data.episodes import read_episodes
from preflight.data.metadata import read_info
from preflight.data.quantile_search import QuantileSearch
from preflight.data.raw_values import RawValues, split_by_files
from preflight.data.streamed_stats import ArrayBlock, exact_stats, summarise
from preflight.errors import DataError
from preflight.runs import load_run

V30 = Path(EXAMPLE).parent / "data" / "g1"
V21 = Path(__file__).parent / "data" / "g1_v21"


def recorded(lengths, horizon, dims, seed=0, digits=7):
    r = np.random.default_rng(seed)
    ends = np.cumsum(lengths)
    actions, state = np.round(np.cumsum(r.standard_normal((2, ends[-1], 3)), axis=1), digits).astype(np.float32)
    bounds = {"from_index": ends - lengths, "to_index": ends}
    return RawValues(state=state, actions=actions, **bounds, mask=delta_mask(dims), horizon=horizon)


def every_chunk(values):
    """All chunks of all frames, one after the other, as samples are made."""
    return [
        to_delta(values.actions[action_chunk_indices(i, end, values.horizon)], values.state[i], values.mask)
        for start, end in zip(values.from_index.tolist(), values.to_index.tolist(), strict=True)
        for i in range(start, end)
    ]


def assert_exact(values):
    stats, summaries = exact_stats(values)
    for name, x in (("state", values.state), ("actions", np.concatenate(every_chunk(values)))):
        assert_stats(stats[name], explicit(x))
        assert summaries[name].count == len(x)
        np.testing.assert_array_equal(summaries[name].low, x.min(axis=0))
        np.testing.assert_array_equal(summaries[name].high, x.max(axis=0))


MASKS = [(), (2, -1), (-1, 2), (3,), (-3,), (1,)]


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    horizon=st.integers(1, 15),
    dims=st.sampled_from(MASKS),
    seed=st.integers(0, 100),
)
def test_action_statistics_are_those_of_every_chunk(lengths, horizon, dims, seed):
    assert_exact(recorded(lengths, horizon, dims, seed))


@pytest.mark.parametrize("digits", [7, 0])  # all values differ; or there are few, and many are equal
@pytest.mark.parametrize("dims", MASKS)
def test_quantiles_of_more_values_than_are_held_are_exact(dims, digits):
    assert_exact(recorded([900, 1, 700, 1500], 50, dims, digits=digits))


@pytest.mark.parametrize("capacity", [1 << 19, 2000, 500])  # in one pass, and in several
@pytest.mark.parametrize("spread", [6.0, 0.2])  # a bracket that holds, and one that often does not
@pytest.mark.parametrize("digits", [7, 0])
def test_a_bracket_that_missed_or_is_too_full_is_gone_through_again(monkeypatch, capacity, spread, digits):
    monkeypatch.setattr(streamed_stats, "_HELD", 100)
    monkeypatch.setattr(streamed_stats, "_SAMPLE", 300)
    monkeypatch.setattr(quantile_search, "CAPACITY", capacity)
    monkeypatch.setattr(quantile_search, "_SPREAD", spread)
    for seed in range(4):
        assert_exact(recorded([60, 500, 240], 10, (2, -1), seed, digits))


def test_a_sample_that_misleads_is_found_out():
    values = np.arange(10_000, dtype=np.float32)
    search = QuantileSearch(0.01, len(values), sample=np.linspace(5000, 6000, 5000, dtype=np.float32))
    search.add(values)
    assert search.found() is None
    for part in np.array_split(values, 7):
        search.add(part)
    assert search.found() == pytest.approx(np.quantile(values.astype(float), 0.01), abs=1e-9)


def test_a_constant_dimension_has_no_deviation():
    values = recorded([700, 900], 50, (3,))
    values.actions[:, 1] = values.state[:, 1] = np.float32(1.1)
    stats, summaries = exact_stats(values)
    assert stats["state"].mean[1] == stats["state"].q01[1] == stats["state"].q99[1] == np.float32(1.1)
    assert stats["state"].std[1] == stats["actions"].std[1] == stats["actions"].q99[1] == 0
    assert summaries["actions"].low[1] == summaries["actions"].high[1]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_dimension_that_is_not_finite_has_no_statistics(broken):
    values = recorded([3000], 50, (3,))
    values.actions[7, 1] = broken
    stats, _ = exact_stats(values)
    for field in ("mean", "std", "q01", "q99"):
        assert np.isnan(getattr(stats["actions"], field)).tolist() == [False, True, False]
        assert np.isfinite(getattr(stats["state"], field)).all()


def test_what_lies_outside_is_counted():
    values = recorded([40, 50], 20, (2, -1))
    low, high = np.full(3, -2.0), np.array([1.0, 2.0, 3.0])
    found = summarise(values, {"state": (low, high), "actions": (low, high)})
    x = np.concatenate(every_chunk(values))
    np.testing.assert_allclose(found["actions"].share_outside, ((x < low) | (x > high)).mean(axis=0), rtol=1e-12)


def test_values_that_are_held_give_the_same():
    values = recorded([400, 300], 20, (2, -1))
    held = ArrayBlock({"state": values.state, "actions": np.stack(every_chunk(values))})
    for theirs, ours in zip(exact_stats(held)[0].values(), exact_stats(values)[0].values(), strict=True):
        assert_stats(ours, {field: getattr(theirs, field) for field in ("mean", "std", "q01", "q99")})


@pytest.mark.parametrize("root", [V30, V21])
@pytest.mark.parametrize("delta", ["[]", "[7, -6, 7, -6]"])
def test_files_one_after_the_other_give_what_the_open_dataset_computes(monkeypatch, root, delta):
    monkeypatch.setattr("preflight.data.raw_values._BLOCK", 1)
    run = load_run(EXAMPLE, assignments=[f"data.root={root}", f"data.delta_actions={delta}"])
    source = run.all_before_normalisation()
    assert [block.frames for block in source.blocks()] == ([498] if root == V30 else [221, 277])
    told = []
    stats, _ = exact_stats(source, progress=lambda done, total: told.append((done, total)))
    for name, expected in run.dataset().stats.items():
        assert_stats(stats[name], {field: getattr(expected, field) for field in ("mean", "std", "q01", "q99")})
    assert told[-1] == (498, 498)
    frames, steps = np.array([3, 3, 220, 221, 497]), np.array([0, 49, 10, 7, 49])
    for name, drawn in source.drawn(frames, steps).items():
        values = run.before_normalisation(frames)[name]
        np.testing.assert_array_equal(drawn, values if name == "state" else values[np.arange(5), steps])


def test_an_episode_is_never_divided_from_its_file():
    info = read_info(V21)
    episodes = read_episodes(info)
    assert [part.total_frames for part, _ in split_by_files(info, episodes, 1)] == [221, 277]
    assert [part.total_frames for part, _ in split_by_files(info, episodes, 222)] == [498]
    (_, second) = list(split_by_files(info, episodes, 1))[1]
    assert (second.index.tolist(), second.from_index.tolist(), second.to_index.tolist()) == ([1], [0], [277])


def test_a_file_that_is_damaged_is_named_while_it_is_gone_through(tmp_path):
    root = Path(shutil.copytree(V21, tmp_path / "set"))
    path = root / "data" / "chunk-000" / "episode_000001.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    source = load_run(EXAMPLE, assignments=[f"data.root={root}"]).all_before_normalisation()
    with pytest.raises(DataError, match="episode_000001.parquet cannot be read as parquet"):
        exact_stats(source)
