"""The state of training: all that a step reads and writes, and nothing but arrays."""

from __future__ import annotations

import dataclasses
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


def init_state(run: Run, rng: jax.Array) -> TrainState:
    """The state before the first step. Trace it with `jax.eval_shape` to learn its shapes without its memory.

    Args:
        run: The run.
        rng: A random key.
    """
    params = nnx.state(run.create_model(rng))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Frozen parameters need no optimizer state.
        opt_state=run.optimizer().init(trainable(run, params)),
        # A copy: parameters and average are donated together, and one buffer cannot be donated twice.
        ema_params=None if run.facts.ema_decay is None else jax.tree.map(jnp.copy, params),
    )


def model_def(run: Run) -> nnx.GraphDef[Any]:
    """The model's structure without its parameters, for `nnx.merge`; traced abstractly."""
    return nnx.graphdef(nnx.eval_shape(lambda: run.create_model(jax.random.key(0))))


def trainable(run: Run, params: nnx.State) -> nnx.State:
    """The parameters that the run trains, as a state of their own."""
    # flax 0.12 deprecates the method and offers the function, which 0.10 does not have.
    if hasattr(nnx, "filter_state"):
        return nnx.filter_state(params, run.trainable())
    return params.filter(run.trainable())


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
