"""The step on a toy model: what it does to the state, and how gradients are accumulated."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toy_run import batch_of, toy_run

from preflight.errors import UsageError
from preflight.training import checkpoints
from preflight.training.interval import IntervalMetrics
from preflight.training.mesh import make_mesh, put_batch, replicated
from preflight.training.metrics import global_norm
from preflight.training.state import abstract_state, first_state, init_state, num_updates, optimizer, state_sharding
from preflight.training.step import compile_step, loss_and_grads, model_def

EVERY = 3
SETTINGS = ["lr_schedule.warmup_steps=2", "lr_schedule.decay_steps=6", "ema_decay=0.9"]


def accumulating(*assignments):
    return toy_run(f"gradient_accumulation_steps={EVERY}", *SETTINGS, *assignments, width=16)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@functools.cache
def compiled(run):
    return compile_step(run, make_mesh(1, jax.devices()[:1]))


def flown(run, num_steps, state=None, first=0):
    """The states and metrics of some steps on one device, each step with its own batch."""
    mesh = make_mesh(1, jax.devices()[:1])
    state = first_state(run, jax.random.key(0), state_sharding(run, mesh)) if state is None else state
    step, states, metrics = compiled(run), [jax.tree.map(jnp.copy, state)], []
    for number in range(first, first + num_steps):
        state, found = step(jax.random.key(1), state, put_batch(batch_of(run, number), mesh))
        states.append(jax.tree.map(jnp.copy, state))
        metrics.append({name: float(value) for name, value in found.items()})
    return states, metrics


@pytest.fixture(scope="module")
def accumulated():
    run = accumulating()
    return run, *flown(run, 2 * EVERY + 1)


def test_parameters_and_their_average_move_with_every_kth_step_alone(accumulated):
    _, states, metrics = accumulated
    for number, (before, after) in enumerate(itertools.pairwise(states)):
        moves = (number + 1) % EVERY == 0
        for part in ("params", "ema_params"):
            old, new = leaves(getattr(before, part)), leaves(getattr(after, part))
            same = [np.array_equal(a, b) for a, b in zip(old, new, strict=True)]
            assert not any(same) if moves else all(same), (number, part)
        assert (metrics[number]["update_norm"] > 0) == moves
    assert [int(state.step) for state in states] == list(range(2 * EVERY + 2))


def test_an_update_is_made_from_the_mean_gradient_of_its_steps(accumulated):
    run, states, metrics = accumulated
    inner, params, structure = run.optimizer(), states[0].params, model_def(run)
    opt_state, ema = inner.init(params), states[0].ema_params

    @jax.jit
    def grads_of(params, batch):
        return loss_and_grads(run, nnx.merge(structure, params), jax.random.key(1), batch)[1]

    for update in range(2):
        steps = range(update * EVERY, (update + 1) * EVERY)
        grads = [grads_of(params, batch_of(run, step)) for step in steps]
        for step, one in zip(steps, grads, strict=True):
            assert metrics[step]["grad_norm"] == pytest.approx(float(global_norm(one)), rel=1e-5)
        mean = jax.tree.map(lambda *g: sum(g) / EVERY, *grads)
        updates, opt_state = inner.update(mean, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, ema, params)
        after = states[(update + 1) * EVERY]
        for found, wanted in ((after.params, params), (after.ema_params, ema)):
            for a, b in zip(leaves(found), leaves(wanted), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
        assert metrics[steps[-1]]["update_norm"] == pytest.approx(float(global_norm(updates)), rel=1e-4)


def test_the_schedule_counts_updates(accumulated):
    run, states, metrics = accumulated
    assert [int(num_updates(run, state)) for state in states] == [0, 0, 0, 1, 1, 1, 2, 2]
    rates = [float(run.learning_rate(jnp.int32(n))) for n in range(3)]
    assert [m["learning_rate"] for m in metrics] == [r for r in rates for _ in range(EVERY)][: len(metrics)]
    assert rates[0] < rates[1] < rates[2]
    facts = toy_run("num_train_steps=20", "batch_size=8", f"gradient_accumulation_steps={EVERY}").facts
    assert (facts.num_updates, facts.effective_batch_size) == (6, 24)


def test_an_interval_speaks_of_updates_and_is_not_diluted_by_the_other_steps(accumulated):
    metrics = accumulated[2]
    interval = IntervalMetrics(10)
    sharding = replicated(make_mesh(1, jax.devices()[:1]))
    for number, values in enumerate(metrics):
        interval.add(number, {name: jax.device_put(np.float32(value), sharding) for name, value in values.items()})
    reduced = interval.fetch().reduced(EVERY)
    updates = [metrics[EVERY - 1], metrics[2 * EVERY - 1]]
    for name in ("update_norm", "update_ratio"):
        assert reduced[name] == pytest.approx(np.mean([m[name] for m in updates]), rel=1e-6)
        assert reduced[name] > 0
    assert reduced["loss"] == pytest.approx(np.mean([m["loss"] for m in metrics]), rel=1e-6)


def test_a_resume_in_the_middle_of_an_accumulation_is_bit_identical(accumulated, tmp_path):
    run, states, metrics = accumulated
    saved_after = EVERY + 2
    manager = checkpoints.open_manager(tmp_path, keep_period=None)
    checkpoints.save(manager, saved_after - 1, states[saved_after], {}, pending=None)
    checkpoints.finish(manager, saved_after - 1)
    mesh = make_mesh(1, jax.devices()[:1])
    state = checkpoints.restore(manager, saved_after - 1, abstract_state(run, mesh))
    manager.close()
    for a, b in zip(leaves(state), leaves(states[saved_after]), strict=True):
        np.testing.assert_array_equal(a, b)
    resumed, again = flown(run, len(metrics) - saved_after, state, saved_after)
    assert again == metrics[saved_after:]
    for a, b in zip(leaves(resumed[-1]), leaves(states[-1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_accumulation_the_state_is_the_optimizers_own():
    run = toy_run(width=16)
    state = jax.eval_shape(lambda key: init_state(run, key), jax.random.key(0))
    own = jax.eval_shape(lambda: run.optimizer().init(init_state(run, jax.random.key(0)).params))
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(own)
    assert not isinstance(state.opt_state, optax.MultiStepsState)
    assert isinstance(jax.eval_shape(optimizer(accumulating()).init, state.params), optax.MultiStepsState)


def test_the_accumulating_step_keeps_the_states_types_and_compiles_once(accumulated):
    run, states, _ = accumulated
    kinds = {tuple((leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(state)) for state in states}
    assert len(kinds) == 1
    assert compiled(run)._cache_size() == 1


def test_no_steps_make_no_update():
    with pytest.raises(UsageError, match="gradient_accumulation_steps must be at least 1, not 0"):
        toy_run("gradient_accumulation_steps=0")
