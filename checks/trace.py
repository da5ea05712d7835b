"""The run traced abstractly, at full size: shapes and dtypes without the memory or the time of the arrays."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from checks.context import CheckContext

if TYPE_CHECKING:
    from preflight.training.state import TrainState


def abstract_state(context: CheckContext) -> TrainState:
    """The train state's shapes and dtypes; traced once for all checks."""

    def trace() -> TrainState:
        import jax

        from preflight.training.state import init_state

        return jax.eval_shape(lambda key: init_state(context.run, key), jax.random.key(0))

    return context.once("abstract-state", trace)


def model_structure(context: CheckContext) -> Any:
    """The model without its parameters; traced once for all checks."""
    from preflight.training.state import model_def

    return context.once("model-structure", lambda: model_def(context.run))


@dataclasses.dataclass(frozen=True)
class StateBytes:
    """Bytes of what a train step holds on one device before any activation."""

    parameters: int
    optimizer: int
    ema: int
    gradients: int
    batch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.optimizer + self.ema + self.gradients + self.batch

    @property
    def checkpoint(self) -> int:
        """What one checkpoint writes."""
        return self.parameters + self.optimizer + self.ema


def state_bytes(context: CheckContext, batch_size: int | None = None, *, shards: int = 1) -> StateBytes:
    """Exact bytes from the traced shapes; nothing is allocated.

    Args:
        context: The run's.
        batch_size: Samples on one device; the run's whole batch without it.
        shards: Devices that share one copy of the state.
    """
    from preflight.training.state import trainable

    state, run = abstract_state(context), context.run
    return StateBytes(
        parameters=_share_bytes(state.params, shards),
        optimizer=_share_bytes(state.opt_state, shards),
        ema=_share_bytes(state.ema_params, shards),
        gradients=_share_bytes(trainable(run, state.params), shards),
        batch=tree_bytes(run.batch_spec(batch_size or run.facts.batch_size)),
    )


def _share_bytes(tree: Any, shards: int) -> int:
    """Bytes that one of so many devices holds of all leaves."""
    if shards == 1:
        return tree_bytes(tree)
    import jax

    from preflight.training.mesh import planned_mesh, shard

    mesh = planned_mesh(shards, shards)
    shapes = [(leaf.dtype.itemsize, shard(leaf, mesh).shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree)]
    return sum(itemsize * math.prod(shape) for itemsize, shape in shapes)


def tree_bytes(tree: Any) -> int:
    """Bytes of all leaves."""
    import jax

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def paths(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of parameters by their path, joined by `/`."""
    import jax

    from preflight.models.params import parameter_path

    return {parameter_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def state_paths(state: Any) -> dict[str, Any]:
    """The leaves of a whole train state by their path (`opt_state/1/0/mu/…`), the same on every version of flax."""
    import jax

    named = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        # The level that NNX puts below each parameter.
        shown = [key for key in keys if getattr(key, "name", None) != "value"]
        named["/".join(str(_first(key, "name", "key", "idx")) for key in shown)] = leaf
    return named


def _first(key: Any, *names: str) -> Any:
    return next((getattr(key, name) for name in names if hasattr(key, name)), key)


def shape_text(value: Any) -> str:
    """A traced value in a reader's words: `float32[4,50]`, `a tuple of 2 (float32[], float32[4,50])`."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(map(shape_text, value))})"
    if isinstance(value, dict):
        return f"a dict ({', '.join(f'{name}: {shape_text(leaf)}' for name, leaf in value.items())})"
    return "None" if value is None else f"a {type(value).__name__}"


def state_problems(before: Any, after: Any) -> list[str]:
    """How the state after a step differs from the one before it, by leaf: paths, shapes and dtypes."""
    old, new = state_paths(before), state_paths(after)
    problems = [f"the step loses {path} from the state" for path in old if path not in new]
    problems += [f"the step adds {path} to the state" for path in new if path not in old]
    for path in old:
        if path in new and shape_text(old[path]) != shape_text(new[path]):
            problems.append(f"the step turns {path} from {shape_text(old[path])} into {shape_text(new[path])}")
    return problems
