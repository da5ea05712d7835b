import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preflight.data.actions import action_chunk_indices, delta_mask, occurrences, to_delta
from preflight.data.normalize import NormStats, compute, fit_to, load, normalize, save, unnormalize
from preflight.data.resize import resize_with_pad
from preflight.errors import DataError

FIELDS = ("mean", "std", "q01", "q99")


def explicit(x):
    """The statistics as numpy gives them."""
    x = np.asarray(x, np.float64)
    return dict(zip(FIELDS, (x.mean(0), x.std(0), *np.quantile(x, [0.01, 0.99], axis=0)), strict=True))


def assert_stats(stats, expected):
    for field in FIELDS:
        np.testing.assert_allclose(getattr(stats, field), expected[field], rtol=1e-10, atol=1e-12, err_msg=field)


def bilinear(image, height, width):
    """PIL's antialiased bilinear filter spelt out: a triangle of the scale's width around each output pixel."""

    def matrix(size, new):
        scale = size / new
        support = max(scale, 1.0)
        weights = np.zeros((new, size))
        for i in range(new):
            centre = (i + 0.5) * scale
            for j in range(max(0, int(centre - support + 0.5)), min(size, int(centre + support + 0.5))):
                weights[i, j] = max(0.0, 1 - abs((j + 0.5 - centre) / support))
        return weights / weights.sum(1, keepdims=True)

    rows = np.einsum("ij,hjc->hic", matrix(image.shape[1], width), image.astype(float))
    rows = np.round(rows)  # PIL rounds between its two passes
    return np.einsum("ij,jwc->iwc", matrix(image.shape[0], height), rows)


@pytest.mark.parametrize(
    ("shape", "inner"),
    [
        ((48, 64), (slice(28, 196), slice(None))),
        ((64, 48), (slice(None), slice(28, 196))),
        ((480, 640), (slice(28, 196), slice(None))),
        ((100, 100), (slice(None), slice(None))),
        ((90, 160), (slice(49, 175), slice(None))),
        ((7, 640), (slice(111, 113), slice(None))),
    ],
)
def test_resize_keeps_the_aspect_on_black(shape, inner):
    image = np.random.default_rng(0).integers(1, 256, (*shape, 3), dtype=np.uint8)
    square = resize_with_pad(image)
    assert square.shape == (224, 224, 3)
    assert square.dtype == np.uint8
    scaled = square[inner]
    difference = np.abs(scaled - bilinear(image, *scaled.shape[:2]))
    assert difference.max() <= 1.51  # half a step of rounding, and one where PIL's fixed point ties the other way
    assert difference.mean() < 0.3
    outside = square.copy()
    outside[inner] = 0
    assert outside.sum() == 0


def test_resize_leaves_the_right_size_alone():
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    assert resize_with_pad(image) is image
    assert resize_with_pad(image, 32).shape == (32, 32, 3)


def test_resize_of_a_sliver():
    assert resize_with_pad(np.full((1, 1000, 3), 9, np.uint8)).sum() == 224 * 9 * 3


def test_resize_scales_like_pil():
    image = np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((224, 168), resample=Image.BILINEAR))
    np.testing.assert_array_equal(resize_with_pad(image)[28:196], expected)


STATS = NormStats(
    mean=np.array([1.0, -2.0]), std=np.array([0.5, 4.0]), q01=np.array([0.0, -10.0]), q99=np.array([2.0, 6.0])
)


def test_formulas():
    x = np.array([[1.5, 2.0], [0.0, -10.0]], np.float32)
    np.testing.assert_allclose(normalize(x, STATS, "zscore"), [[1, 1], [-2, -2]], rtol=1e-5)
    np.testing.assert_allclose(normalize(x, STATS, "quantile"), [[0.5, 0.5], [-1, -1]], rtol=1e-5)
    constant = NormStats(mean=np.ones(1), std=np.zeros(1), q01=np.ones(1), q99=np.ones(1))
    np.testing.assert_allclose(normalize(np.array([1.001]), constant, "zscore"), [1000], rtol=1e-3)
    np.testing.assert_allclose(normalize(np.array([1.001]), constant, "quantile"), [1999], rtol=1e-3)
    for kind in ("zscore", "quantile"):
        assert normalize(x, STATS, kind).dtype == np.float32
        np.testing.assert_allclose(unnormalize(normalize(x, STATS, kind), STATS, kind), x, atol=1e-5)


@given(n=st.integers(1, 60), seed=st.integers(0, 1000))
def test_statistics_are_numpys(n, seed):
    r = np.random.default_rng(seed)
    x = np.round(r.standard_normal((n, 3)) * [1, 100, 0.01], 2).astype(np.float32)
    assert_stats(compute(x), explicit(x))


def test_sums_are_exact_where_float32_would_not_be():
    x = np.full((3_000_000, 1), 1.1, np.float32)
    x[::2] += 1000
    assert_stats(compute(x), explicit(x))


def test_stats_file_round_trip(tmp_path):
    path = tmp_path / "assets" / "norm_stats.json"
    save({"state": STATS, "actions": compute(np.eye(3))}, path)
    assert json.loads(path.read_text())["norm_stats"]["state"] == {
        "mean": [1.0, -2.0],
        "std": [0.5, 4.0],
        "q01": [0.0, -10.0],
        "q99": [2.0, 6.0],
    }
    loaded = load(path)
    assert_stats(loaded["state"], {f: getattr(STATS, f) for f in FIELDS})
    assert_stats(loaded["actions"], explicit(np.eye(3)))
    assert [p.name for p in path.parent.iterdir()] == ["norm_stats.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1, column 2: not valid JSON"),
        ("[]", 'is no norm_stats.json: it has no object "norm_stats"'),
        ('{"norm_stats": {"state": {}}}', "norm_stats has no 'actions'"),
        (
            '{"norm_stats": {"state": {"mean": 1}, "actions": {}}}',
            "norm_stats['state']['mean'] must be a list of numbers",
        ),
        (
            '{"norm_stats": {"state": {"mean": [1], "std": [1, 2]}, "actions": {}}}',
            "the lists of norm_stats['state'] differ in length (mean 1, std 2, q01 1, q99 1)",
        ),
    ],
)
def test_bad_stats_files(tmp_path, content, message):
    path = tmp_path / "norm_stats.json"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        load(path)
    assert str(path) in error.value.message
    assert message in error.value.message


def test_statistics_of_other_widths(tmp_path):
    padded = compute(np.pad(np.random.default_rng(0).standard_normal((50, 2)), ((0, 0), (0, 30))))
    cut = fit_to(padded, 2, "state", tmp_path)
    assert len(cut.mean) == len(cut.q99) == 2
    for width in (1, 33):
        with pytest.raises(DataError, match=f"'state' have 32 dimensions, the dataset's state has {width}"):
            fit_to(padded, width, "state", tmp_path)


def test_delta_mask_notation():
    expected = [True] * 6 + [False] + [True] * 6 + [False]
    assert delta_mask((6, -1, 6, -1)).tolist() == expected
    assert delta_mask((-2, 3)).tolist() == [False, False, True, True, True]
    assert delta_mask(()).tolist() == []


def test_chunks_end_with_the_last_action():
    assert action_chunk_indices(3, 10, 4).tolist() == [3, 4, 5, 6]
    assert action_chunk_indices(8, 10, 4).tolist() == [8, 9, 9, 9]
    assert action_chunk_indices(9, 10, 3).tolist() == [9, 9, 9]


def test_delta_subtracts_the_state_of_the_first_frame():
    actions = np.array([[10, 20, 30, 40], [11, 21, 31, 41]], np.float32)
    state = np.array([1, 2, 3, 4, 5], np.float32)
    relative = to_delta(actions, state, delta_mask((1, -1, 1)))
    assert relative.tolist() == [[9, 20, 27, 40], [10, 21, 28, 41]]
    assert actions[0].tolist() == [10, 20, 30, 40]
    assert to_delta(actions, state, delta_mask(())).tolist() == actions.tolist()


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), horizon=st.integers(1, 15))
def test_places_of_an_action_are_counted(lengths, horizon):
    ends = np.cumsum(lengths)
    chunks = [
        action_chunk_indices(i, end, horizon)
        for length, end in zip(lengths, ends.tolist(), strict=True)
        for i in range(end - length, end)
    ]
    expected = np.bincount(np.concatenate(chunks), minlength=ends[-1])
    assert occurrences(ends - lengths, ends, horizon).tolist() == expected.tolist()
