"""The whole train step, traced and lowered at full size: what compilers and counters look at instead of running it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import export

from preflight.training.state import init_state, model_def
from preflight.training.step import train_step

if TYPE_CHECKING:
    from preflight.runs import Run


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A train step on one device, as `(seed, state leaves, batch leaves) -> (state leaves, metrics)`.

    The second argument is meant to be donated. Flat lists of arrays: whoever compiles it needs none of our classes.
    """

    traced: Any  # jax.stages.Traced
    _jitted: Any
    _arguments: tuple[Any, ...]

    @property
    def jaxpr(self) -> Any:
        """The step as jax's intermediate language, closed."""
        return self.traced.jaxpr

    def serialize(self, platform: str) -> bytes:
        """The step lowered for a platform ("cpu", "cuda"), to be read with `jax.export.deserialize`."""
        return bytes(export.export(self._jitted, platforms=[platform])(*self._arguments).serialize())


def lower_step(run: Run, batch_size: int) -> LoweredStep:
    """Traces a run's step; no array is made.

    Args:
        run: The run.
        batch_size: Samples on the one device.
    """
    structure = model_def(run)
    state = jax.eval_shape(lambda key: init_state(run, key), jax.random.key(0))
    leaves, tree = jax.tree.flatten(state)
    batch_leaves, batch_tree = jax.tree.flatten(run.batch_spec(batch_size))

    def step(seed: Any, leaves: list[Any], batch_leaves: list[Any]) -> Any:
        state, metrics = train_step(
            run,
            structure,
            jax.random.wrap_key_data(seed),
            jax.tree.unflatten(tree, leaves),
            jax.tree.unflatten(batch_tree, batch_leaves),
        )
        return jax.tree.leaves(state), metrics

    jitted = jax.jit(step)
    seed = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    arguments = (jax.ShapeDtypeStruct(seed.shape, jnp.uint32), leaves, batch_leaves)
    return LoweredStep(jitted.trace(*arguments), jitted, arguments)
