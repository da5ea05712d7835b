import jax
import jax.numpy as jnp
import pytest

from preflight.runs import load_run
from preflight.telemetry.targets import gpu
from preflight.training.flops import count_flops
from preflight.training.lowered import lower_step
from preflight.training.roofline import roofline

A, B = jnp.zeros((8, 16)), jnp.zeros((16, 32))
DOT = 2 * 8 * 16 * 32


def flops(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments))


def test_a_product_is_what_xla_says_it_is():
    counted = flops(lambda a, b: a @ b, A, B)
    assert (counted.matmul, counted.unbounded_loops) == (DOT, 0)
    assert jax.jit(lambda a, b: a @ b).lower(A, B).cost_analysis()["flops"] == DOT


def test_batched_products_and_convolutions():
    assert flops(
        lambda a, b: jnp.einsum("bij,bjk->bik", a, b), jnp.zeros((5, 8, 16)), jnp.zeros((5, 16, 32))
    ).matmul == (5 * DOT)
    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((4, 4, 3, 7))
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops(convolve, image, kernel).matmul == 2 * (2 * 2 * 2 * 7) * (4 * 4 * 3)


def test_a_loop_counts_as_often_as_it_runs():
    def looped(a, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), a, None, length=9)[0]

    square = jnp.zeros((16, 16))
    assert flops(looped, A, square).matmul == 9 * 2 * 8 * 16 * 16


def test_what_is_computed_again_counts_again():
    def loss(a, b):
        return jnp.sum(jnp.tanh(jnp.tanh(a @ b) @ b.T))

    plain = flops(jax.grad(loss), A, B).matmul
    again = flops(jax.grad(jax.checkpoint(loss)), A, B).matmul
    assert plain == 4 * DOT  # two forward, and each once towards its left factor
    assert again > plain


def test_the_dearest_branch_counts_and_an_endless_loop_is_said():
    branched = flops(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((8, 32))), A, B)
    assert branched.matmul == DOT
    endless = flops(lambda a: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x + 1, a), A)
    assert endless.unbounded_loops == 1


def test_pi0s_step_is_what_its_sizes_give():
    """Multiplications by weights alone, from the shapes of the parameters: attention adds to it."""
    step = lower_step(load_run("pi0_lighter_cup_trossen"), 32)
    counted = count_flops(step.jaxpr)
    per_layer = {
        "image tower": 27 * (4 * 1152 * 1152 + 2 * 1152 * 4304) * 3 * 256,
        "language": 18 * ((2 * 8 + 2) * 2048 * 256 + 3 * 2048 * 16_384) * (3 * 256 + 48),
        "action": 18 * ((2 * 8 + 2) * 1024 * 256 + 3 * 1024 * 4096) * 51,
    }
    # Forward, twice as much for the gradients, and most of the forward pass again (no layer's last product is needed).
    forward = 2 * 32 * sum(per_layer.values())
    assert 3.5 < counted.matmul / forward < 4
    assert counted.unbounded_loops == 0


def test_the_floor_is_the_tighter_bound_and_the_demand_a_range():
    h100 = gpu("h100-80gb")
    bounds = roofline(flops=989.4e12, bytes_moved=3350e9 / 10, spec=h100, batch_size=32)
    assert (bounds.floor_s, bounds.bound) == (1.0, "compute")
    assert bounds.demand_samples_per_s == pytest.approx((32 * 0.35, 32))
    bounds = roofline(flops=989.4e10, bytes_moved=3350e9 / 10, spec=h100, batch_size=32)
    assert (bounds.floor_s, bounds.bound) == (pytest.approx(0.1), "memory bandwidth")
