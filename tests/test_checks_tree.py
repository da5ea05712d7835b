import jax
import jax.numpy as jnp
import numpy as np
import pytest
from healthy import context, outcome_of, the_one_that_speaks

from checks.tree_cases import MANY, many_problems, mismatch_problems, problems_of, reduction_cases
from preflight.training import metrics


def speaks(monkeypatch, id_, name, broken):
    monkeypatch.setattr(metrics, name, broken)
    outcome = the_one_that_speaks(context(), id_)
    assert outcome.status == "fail"
    return [outcome.summary, *outcome.evidence]


def no_initialiser(tree):
    return jax.tree.reduce(jnp.maximum, jax.tree.map(lambda x: jnp.max(jnp.abs(x)).astype(jnp.float32), tree))


def hides_nan(tree):
    # Not jnp.fmax from leaf to leaf: over 50 of them, XLA of jax 0.5.3 compiles for minutes.
    maxima = [jnp.nanmax(jnp.abs(leaf), initial=0).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.nanmax(jnp.stack([jnp.float32(0), *maxima]))


def integer_count(tree):
    leaves = jax.tree.leaves(tree)
    total = sum((jnp.sum(jnp.abs(leaf.astype(jnp.float32))) for leaf in leaves), jnp.float32(0))
    return total / max(sum(leaf.size for leaf in leaves), 1)


def wrapping_count(tree):
    leaves = jax.tree.leaves(tree)
    total = sum((jnp.sum(jnp.abs(leaf.astype(jnp.float32))) for leaf in leaves), jnp.float32(0))
    # What numpy does in an int32 without a word.
    count = sum(leaf.size for leaf in leaves)
    return total / float(max((count + 2**31) % 2**32 - 2**31, -(2**31)) or 1)


def norm_in_the_leaves_type(tree):
    return jnp.sqrt(sum((jnp.sum(jnp.square(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)), 0.0))


def distance_by_order(a, b):
    return metrics.global_norm([x - y.astype(jnp.float32) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=False)])


def distance_without_nan(a, b):
    return metrics.global_norm(jax.tree.map(lambda x, y: jnp.nan_to_num(x.astype(jnp.float32) - y), a, b))


@pytest.mark.parametrize("id_", ["tree.reduce", "tree.norms", "tree.ema-distance"])
def test_a_healthy_runs_reductions_are_covered(id_):
    outcome = outcome_of(id_, context())
    assert outcome.status == "pass", outcome
    assert "a float64 oracle" in outcome.summary
    assert "the run's 50 leaves" in outcome.summary
    for covered in ("empty", "single", "bfloat16", "None", "NaN and inf"):
        assert covered in outcome.summary


@pytest.mark.parametrize(
    ("name", "broken", "line"),
    [
        ("abs_max", no_initialiser, "abs_max dies on an empty tree: TypeError: reduce() of empty iterable"),
        ("abs_max", hides_nan, "abs_max of a tree with NaN is 1, numpy says nan"),
        ("abs_max", metrics.global_norm, "abs_max of a single negative leaf is 3.6055"),
        ("abs_mean", integer_count, f"abs_mean dies on {MANY:,} elements: OverflowError"),
        ("abs_mean", wrapping_count, f"abs_mean of {MANY:,} elements of 1.5 is -4.59"),
    ],
)
def test_a_wrong_reduction_trips_tree_reduce_alone(monkeypatch, name, broken, line):
    assert any(line in said for said in speaks(monkeypatch, "tree.reduce", name, broken))


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        (norm_in_the_leaves_type, "global_norm of a bfloat16 leaf is"),
        (lambda tree: jnp.float32(0), "global_norm of the run's 50 leaves is 0, numpy says"),
    ],
)
def test_a_wrong_norm_trips_tree_norms_alone(monkeypatch, broken, line):
    assert any(line in said for said in speaks(monkeypatch, "tree.norms", "global_norm", broken))


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        (distance_without_nan, "tree_distance of NaN in the parameters is"),
        (distance_by_order, "tree_distance of trees with a leaf of another name is"),
        (
            lambda a, b: metrics.global_norm(jax.tree.map(lambda x, y: x.astype(jnp.float32) - y, a, b)),
            "it must refuse them",
        ),
        (lambda a, b: metrics.global_norm(a), "leaves and themselves is"),
    ],
)
def test_a_wrong_distance_trips_ema_distance_alone(monkeypatch, broken, line):
    assert any(line in said for said in speaks(monkeypatch, "tree.ema-distance", "tree_distance", broken))


def test_trees_that_do_not_belong_together_are_refused_by_name():
    assert mismatch_problems() == []
    a, b = {"x": {"w": np.ones((2, 3), np.float32)}}, {"x": {"w": np.ones((1, 3), np.float32)}}
    with pytest.raises(ValueError, match=r"x/w is \[2, 3\] in one and \[1, 3\] in the other"):
        metrics.tree_distance(a, b)
    with pytest.raises(ValueError, match=r"x/v is absent in one and \[3\] in the other"):
        metrics.tree_distance(a, {"x": {"w": a["x"]["w"], "v": np.ones(3, np.float32)}})


def test_more_elements_than_an_int32_counts_cost_neither_memory_nor_a_wrong_mean():
    assert MANY == 3_238_048_528
    assert many_problems("abs_mean", 1.5) == []
    assert many_problems("abs_mean", 1.6) == [f"abs_mean of {MANY:,} elements of 1.5 is 1.5, expected 1.6"]


def test_every_case_of_every_reduction_is_right():
    cases = reduction_cases({"w": np.ones((2, 2), np.float32)})
    for reduction in ("abs_max", "abs_mean", "global_norm"):
        assert problems_of(reduction, cases) == []
