"""The whole train step, traced and lowered at full size: what compilers and counters look at instead of running it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import export

from preflight.models.sharding import activations_on
from preflight.training.mesh import by_sample, planned_mesh, replicated, require_divisible, shard
from preflight.training.state import init_state, model_def
from preflight.training.step import train_step

if TYPE_CHECKING:
    from preflight.runs import Run


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A train step, as `(seed, state leaves, batch leaves) -> (state leaves, metrics)`.

    The second argument is meant to be donated. Flat lists of arrays: whoever compiles it needs none of our classes.
    """

    traced: Any  # jax.stages.Traced
    _jitted: Any
    _arguments: tuple[Any, ...]
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)  # its axes, by name; none: one device

    @property
    def num_devices(self) -> int:
        """How many devices the step is divided over."""
        return math.prod(self.mesh.values())

    @property
    def jaxpr(self) -> Any:
        """The step as jax's intermediate language, closed."""
        return self.traced.jaxpr

    def serialize(self, platform: str) -> bytes:
        """The step lowered for a platform ("cpu", "cuda"), to be read with `jax.export.deserialize`."""
        return bytes(export.export(self._jitted, platforms=[platform])(*self._arguments).serialize())


def lower_step(run: Run, batch_size: int, *, fsdp_devices: int = 1, num_devices: int = 1) -> LoweredStep:
    """Traces a run's step; no array is made.

    Args:
        run: The run; its own `fsdp_devices` are not looked at.
        batch_size: Samples over all devices.
        fsdp_devices: Devices that share one copy of the state.
        num_devices: All devices; they need not be here.

    Raises:
        UsageError: The shards do not divide the devices, or the devices the batch.
    """
    structure = model_def(run)
    state = jax.eval_shape(lambda key: init_state(run, key), jax.random.key(0))
    leaves, tree = jax.tree.flatten(state)
    batch_leaves, batch_tree = jax.tree.flatten(run.batch_spec(batch_size))
    require_divisible(batch_size, fsdp_devices, num_devices)
    mesh = planned_mesh(fsdp_devices, num_devices) if num_devices > 1 else None

    def step(seed: Any, leaves: list[Any], batch_leaves: list[Any]) -> Any:
        with activations_on(mesh):
            state, metrics = train_step(
                run,
                structure,
                jax.random.wrap_key_data(seed),
                jax.tree.unflatten(tree, leaves),
                jax.tree.unflatten(batch_tree, batch_leaves),
            )
        return jax.tree.leaves(state), metrics

    if mesh is None:
        jitted = jax.jit(step)
    else:
        places, whole = [shard(leaf, mesh) for leaf in leaves], replicated(mesh)
        jitted = jax.jit(step, in_shardings=(whole, places, by_sample(mesh)), out_shardings=(places, whole))
    seed = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    arguments = (jax.ShapeDtypeStruct(seed.shape, jnp.uint32), leaves, batch_leaves)
    axes = {} if mesh is None else dict(mesh.shape)
    return LoweredStep(jitted.trace(*arguments), jitted, arguments, axes)
