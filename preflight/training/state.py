"""The state of training: all that a step reads and writes, and nothing but arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from preflight.models.params import parameter_path
from preflight.training.mesh import replicated, shard, shards_state

if TYPE_CHECKING:
    from preflight.runs import Run


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree of arrays, or of what stands in for them while it is traced.

    The model's structure and the optimizer's functions are no part of it: the run has them.
    """

    step: Any  # int32[]; the number of steps made, each of one batch
    params: Any  # nnx.State
    opt_state: Any  # optax.OptState, over the trainable parameters; with accumulation the MultiStepsState around it
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
        opt_state=optimizer(run).init(trainable(run, params)),
        # A copy: parameters and average are donated together, and one buffer cannot be donated twice.
        ema_params=None if run.facts.ema_decay is None else jax.tree.map(jnp.copy, params),
    )


def optimizer(run: Run) -> optax.GradientTransformation:
    """The run's optimizer; where gradients are accumulated, behind the mean of so many steps' gradients."""
    steps = run.facts.gradient_accumulation_steps
    if steps == 1:
        return run.optimizer()
    return optax.MultiSteps(run.optimizer(), every_k_schedule=steps).gradient_transformation()


def num_updates(run: Run, state: TrainState) -> jax.Array:
    """How often the parameters have moved before a state: what schedules count."""
    if run.facts.gradient_accumulation_steps == 1:
        return state.step
    updates: jax.Array = state.opt_state.gradient_step
    return updates


def state_sharding(run: Run, mesh: jax.sharding.Mesh) -> Any:
    """Where the state lies: one sharding for all of it, or, where the mesh shards it, a state of shardings."""
    if not shards_state(mesh):
        return replicated(mesh)
    return jax.tree.map(lambda x: shard(x, mesh), jax.eval_shape(lambda key: init_state(run, key), jax.random.key(0)))


def abstract_state(run: Run, mesh: jax.sharding.Mesh) -> TrainState:
    """The state's shapes, dtypes and shardings, to restore a checkpoint into; it may be of another mesh."""
    state = jax.eval_shape(lambda key: init_state(run, key), jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shard(x, mesh)), state)


def first_state(run: Run, rng: jax.Array, sharding: Any) -> TrainState:
    """Makes the state before the first step, from the run's pretrained parameters where it has some.

    Args:
        run: The run.
        rng: A random key.
        sharding: Where the arrays lie: one `jax.sharding.Sharding` for all, or what `state_sharding` gives.

    Raises:
        DataError: The pretrained parameters are missing or do not fit.
    """
    abstract = pure(nnx.state(nnx.eval_shape(lambda: run.create_model(jax.random.key(0)))))
    places = pure(sharding.params) if isinstance(sharding, TrainState) else sharding
    weights = _moved(run.load_weights(abstract), places)
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


def _moved(tree: dict[str, Any], places: Any) -> dict[str, Any]:
    """The arrays on their devices; each is taken out of `tree`, so that the host's copies go one by one."""
    moved: dict[str, Any] = {}
    for name in list(tree):
        node, place = tree.pop(name), places[name] if isinstance(places, dict) else places
        # Never an alias of the host's memory, which is not ours to donate.
        moved[name] = _moved(node, place) if isinstance(node, dict) else jax.device_put(node, place, may_alias=False)
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
