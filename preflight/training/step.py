"""The instrumented train step."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from preflight.models.params import parameter_path
from preflight.models.sharding import activations_on
from preflight.training.mesh import by_sample, replicated, shards_state
from preflight.training.metrics import abs_max, abs_mean, global_norm, tree_distance
from preflight.training.state import TrainState, model_def, num_updates, optimizer, state_sharding, trainable

if TYPE_CHECKING:
    from preflight.runs import Run
    from preflight.runs.protocol import Batch

# Parameters that openpi leaves out of `param_norm`: what is no kernel says little about the size of the weights.
_NOT_KERNELS = ("/bias", "/scale", "/pos_embedding", "/input_embedding")

Metrics = dict[str, Float[Array, ""]]


def loss_and_grads(run: Run, model: nnx.Module, rng: jax.Array, batch: Batch) -> Any:
    """The mean loss, every sample's and action step's loss as aux, and the gradients of the trainable parameters.

    Returns:
        `((loss, chunked_loss), grads)`: a scalar, `[batch, horizon]`, and a state with exactly the trainable leaves.
        Not annotated: whether a run's loss keeps this contract is what the check `grad.has-aux` asks.
    """

    def loss_fn(model: nnx.Module, rng: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        chunked_loss = run.compute_loss(model, rng, batch, train=True)
        return jnp.mean(chunked_loss), chunked_loss

    return nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, run.trainable()), has_aux=True)(model, rng, batch)


def train_step(
    run: Run, structure: nnx.GraphDef[Any], rng: jax.Array, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """One step: one update, or, where gradients are accumulated, one of the batches that an update is made from.

    With accumulation, only each `gradient_accumulation_steps`-th step moves the parameters and their average: by the
    mean of the gradients since the last one, which is clipped as one gradient.

    Args:
        run: The run; static.
        structure: The model's, see `model_def`; static.
        rng: The run's random key; the step's own is folded from it, so that a resumed run draws the same numbers.
        state: The state before the step.
        batch: Arrays with a leading batch axis.

    Returns:
        The state after the step, and the metrics of the step as scalars on the device: `loss` is the mean over samples
        and action steps, `loss_std`, `loss_max` and `loss_min` are taken over the same values; `grad_norm` is taken
        before clipping, of this batch; `param_norm` covers kernels only, as in openpi; `update_ratio` is
        `update_norm / param_norm`, and both are 0 where the step is no update; `learning_rate` is that of the update
        that the step belongs to.
    """
    model = nnx.merge(structure, state.params)
    step_rng = jax.random.fold_in(rng, state.step)
    (loss, chunked_loss), grads = loss_and_grads(run, model, step_rng, batch)

    trained = trainable(run, state.params)
    updates, opt_state = optimizer(run).update(grads, state.opt_state, trained)
    nnx.update(model, optax.apply_updates(trained, updates))
    params = nnx.state(model)

    new_state = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
    if state.ema_params is not None and run.facts.ema_decay is not None:
        new_state = dataclasses.replace(new_state, ema_params=_average(run, run.facts.ema_decay, state, new_state))

    param_norm = global_norm(_kernels(params))
    update_norm = global_norm(updates)
    metrics = {
        "loss": loss,
        "grad_norm": global_norm(grads),
        "param_norm": param_norm,
        "loss_std": jnp.std(chunked_loss),
        "loss_max": jnp.max(chunked_loss),
        "loss_min": jnp.min(chunked_loss),
        "grad_max": abs_max(grads),
        "grad_mean": abs_mean(grads),
        "update_norm": update_norm,
        "update_ratio": update_norm / jnp.maximum(param_norm, jnp.finfo(jnp.float32).tiny),
        "learning_rate": run.learning_rate(num_updates(run, state)),
    }
    if new_state.ema_params is not None:
        metrics["ema_distance"] = tree_distance(params, new_state.ema_params)
    return new_state, metrics


def _average(run: Run, decay: float, before: TrainState, after: TrainState) -> Any:
    """The moving average after a step; it moves with the parameters, not with every batch."""
    keep: Any = decay
    take: Any = 1 - decay
    if run.facts.gradient_accumulation_steps > 1:
        moved = num_updates(run, after) > num_updates(run, before)
        keep, take = jnp.where(moved, jnp.float32(keep), 1), jnp.where(moved, jnp.float32(take), 0)
    return jax.tree.map(lambda old, new: (keep * old + take * new).astype(old.dtype), before.ema_params, after.params)


def _kernels(params: nnx.State) -> list[jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [leaf for keys, leaf in leaves if leaf.ndim > 1 and not parameter_path(keys).endswith(_NOT_KERNELS)]


def compile_step(run: Run, mesh: jax.sharding.Mesh, *, metrics: Collection[str] | None = None) -> jax.stages.Wrapped:
    """The jitted step `(rng, state, batch) -> (state, metrics)`; the state's buffers are donated.

    Args:
        run: The run.
        mesh: See `preflight.training.mesh`; the state lies as `state_sharding` says, the batch as `by_sample`.
        metrics: Those that are computed; all of them where it is None.
    """
    structure = model_def(run)
    state_places, whole = state_sharding(run, mesh), replicated(mesh)

    # Annotated loosely: whether a step keeps its contract is what the check `step.contract` asks.
    def step(rng: jax.Array, state: Any, batch: Any) -> Any:
        with activations_on(mesh if shards_state(mesh) else None):
            made = train_step(run, structure, rng, state, batch)
        # What is not given back, XLA does not compute.
        return made if metrics is None else (made[0], {name: made[1][name] for name in metrics})

    return jax.jit(
        step,
        donate_argnums=1,
        in_shardings=(whole, state_places, by_sample(mesh)),
        out_shardings=(state_places, whole),
    )
