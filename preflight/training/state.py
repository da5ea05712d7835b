"""The state of training: all that a step reads and writes, and nothing but arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from preflight.models.params import parameter_path

if TYPE_CHECKING:
    from preflight.runs import Run


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree of arrays, or of what stands in for them while it is traced.

    The model's structure and the optimizer's functions are no part of it: the run has them.
    """

    step: Any  # int32[]; the number of updates made
    params: Any  # nnx.State
    opt_state: Any  # optax.OptState, over the trainable parameters
    ema_params: Any  # nnx.State like `params`, or None


def init_state(run: Run, rng: jax.Array, weights: Mapping[str, Any] | None = None) -> TrainState:
    """The state before the first step. Trace it with `jax.eval_shape` to learn its shapes without its memory.

    Args:
        run: The run; its own `weights` are not read here.
        rng: A random key.
        weights: Parameters to start from in place of random ones, nested by path; any part of the model's.
    """
    params = _frozen_cast(run, _replaced(nnx.state(run.create_model(rng)), weights or {}))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Frozen parameters need no optimizer state.
        opt_state=run.optimizer().init(trainable(run, params)),
        # A copy: parameters and average are donated together, and one buffer cannot be donated twice.
        ema_params=None if run.facts.ema_decay is None else jax.tree.map(jnp.copy, params),
    )


def first_state(run: Run, rng: jax.Array, sharding: jax.sharding.Sharding) -> TrainState:
    """Makes the state before the first step, from the run's pretrained parameters where it has some.

    Args:
        run: The run.
        rng: A random key.
        sharding: Where each array lies.

    Raises:
        DataError: The pretrained parameters are missing or do not fit.
    """
    abstract = pure(nnx.state(nnx.eval_shape(lambda: run.create_model(jax.random.key(0)))))
    weights = _moved(run.load_weights(abstract), sharding)
    # Donated: they become the state's own buffers; and XLA draws no random numbers for what is replaced.
    make = jax.jit(lambda key, weights: init_state(run, key, weights), out_shardings=sharding, donate_argnums=1)
    return make(rng, weights)


def model_def(run: Run) -> nnx.GraphDef[Any]:
    """The model's structure without its parameters, for `nnx.merge`; traced abstractly."""
    return nnx.graphdef(nnx.eval_shape(lambda: run.create_model(jax.random.key(0))))


def trainable(run: Run, params: nnx.State) -> nnx.State:
    """The parameters that the run trains, as a state of their own."""
    # flax 0.12 deprecates the method and offers the function, which 0.10 does not have.
    if hasattr(nnx, "filter_state"):
        return nnx.filter_state(params, run.trainable())
    return params.filter(run.trainable())


def _frozen_cast(run: Run, params: nnx.State) -> nnx.State:
    """The parameters with those that are not trained in `facts.frozen_dtype`: half the memory, as openpi has it."""
    if run.facts.frozen_dtype is None or not run.facts.frozen:
        return params
    trained = {parameter_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(trainable(run, params))}
    dtype = jnp.dtype(run.facts.frozen_dtype)
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaf if parameter_path(keys) in trained else leaf.astype(dtype), params
    )


def _replaced(params: nnx.State, weights: Mapping[str, Any]) -> nnx.State:
    given = {parameter_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(weights)}
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: given.get(parameter_path(keys), leaf), params)


def _moved(tree: dict[str, Any], sharding: jax.sharding.Sharding) -> dict[str, Any]:
    """The arrays on their devices; each is taken out of `tree`, so that the host's copies go one by one."""
    moved: dict[str, Any] = {}
    for name in list(tree):
        node = tree.pop(name)
        # Never an alias of the host's memory, which is not ours to donate.
        moved[name] = (
            _moved(node, sharding) if isinstance(node, dict) else jax.device_put(node, sharding, may_alias=False)
        )
    return moved


def pure(state: nnx.State) -> dict[str, Any]:
    """The state's arrays as nested dicts, the same on every version of flax."""
    nested: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        *parents, name = parameter_path(keys).split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return nested
