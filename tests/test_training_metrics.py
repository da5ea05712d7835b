"""The metrics' reductions, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preflight.training.metrics import abs_max, abs_mean, global_norm, metrics_line, reduce_steps, tree_distance

RNG = np.random.default_rng(0)
TREE = {"a": RNG.standard_normal((3, 4)).astype(np.float32), "b": {"c": RNG.standard_normal(7).astype(np.float32)}}
FLAT = np.concatenate([x.ravel() for x in jax.tree.leaves(TREE)]).astype(np.float64)


def test_reductions_equal_the_oracle():
    tree = jax.tree.map(jnp.asarray, TREE)
    assert float(abs_max(tree)) == pytest.approx(np.abs(FLAT).max(), rel=1e-6)
    assert float(abs_mean(tree)) == pytest.approx(np.abs(FLAT).mean(), rel=1e-6)
    assert float(global_norm(tree)) == pytest.approx(np.linalg.norm(FLAT), rel=1e-6)


@pytest.mark.parametrize("reduction", [abs_max, abs_mean, global_norm])
def test_an_empty_tree_is_zero_and_nan_comes_through(reduction):
    assert float(reduction({})) == 0
    assert float(reduction({"frozen": None})) == 0
    assert np.isnan(float(reduction({"a": jnp.array([1.0, np.nan]), "b": jnp.array([2.0])})))
    assert float(reduction({"a": jnp.array([1.0, -np.inf])})) == np.inf


def test_bfloat16_leaves_are_summed_in_float32():
    # 4096 ones: in bfloat16 the sum stops at 256, where adding one no longer changes it.
    tree = {"w": jnp.ones(4096, jnp.bfloat16)}
    assert float(global_norm(tree)) == 64
    assert float(abs_mean(tree)) == 1


def test_the_ema_distance_is_the_norm_of_the_difference():
    a = {"w": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}
    b = {"w": jnp.array([1.0, 0.0]), "b": jnp.array([0.0])}
    assert float(tree_distance(a, b)) == pytest.approx(np.sqrt(4 + 9))


def test_an_interval_reduces_maxima_by_max_and_minima_by_min():
    each = {
        "loss": [1.0, 3.0],
        "loss_max": [5.0, 4.0],
        "loss_min": [0.5, 0.7],
        "grad_max": [2.0, 9.0],
        "grad_norm": [4.0, 6.0],
        "learning_rate": [0.1, 0.2],
    }
    assert reduce_steps(each) == pytest.approx(
        {"loss": 2.0, "loss_max": 5.0, "loss_min": 0.5, "grad_max": 9.0, "grad_norm": 5.0, "learning_rate": 0.2}
    )


def test_a_nan_in_one_step_is_a_nan_of_the_interval():
    reduced = reduce_steps({"loss": [np.nan, 1.0], "loss_max": [np.nan, 1.0]})
    assert np.isnan(reduced["loss"])
    assert np.isnan(reduced["loss_max"])


def test_the_line_shows_the_loss_first():
    line = metrics_line({"grad_norm": 1.2345, "param_norm": 9.0, "loss": 0.0234})
    assert line == "loss=0.0234, grad_norm=1.234"
