"""The metrics: reductions over trees of arrays, over the steps of a log interval, and a line for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from preflight.models.params import parameter_path

PyTree = Any

_OF_UPDATES = ("update_norm", "update_ratio")
# In the order in which a person looks at them; the rest is in metrics.jsonl.
_SHOWN = ("loss", "grad_norm", "loss_max", "grad_max", "update_ratio", "ema_distance", "learning_rate")


def abs_max(tree: PyTree) -> Float[Array, ""]:
    """The largest absolute value over all leaves, float32; 0 for an empty tree, NaN if any value is."""
    # The initial value is what an empty leaf needs; jnp.max lets NaN through.
    return jnp.max(_of_leaves(lambda x: jnp.max(jnp.abs(x), initial=0), tree), initial=0)


def abs_mean(tree: PyTree) -> Float[Array, ""]:
    """The mean absolute value over all elements of all leaves, float32; 0 for an empty tree."""
    leaves = jax.tree.leaves(tree)
    # Counted in Python and as a float: pi0's 3.2e9 elements overflow the int32 that jax would make of an integer.
    count = float(sum(leaf.size for leaf in leaves))
    return jnp.sum(_of_leaves(lambda x: jnp.sum(jnp.abs(x.astype(jnp.float32))), tree)) / max(count, 1.0)


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The L2 norm over all leaves, summed in float32 whatever the leaves' dtype; 0 for an empty tree."""
    return jnp.sqrt(jnp.sum(_of_leaves(lambda x: jnp.sum(jnp.square(x.astype(jnp.float32))), tree)))


def _of_leaves(reduce: Callable[[Any], Any], tree: PyTree) -> Float[Array, " leaves"]:
    """One float32 a leaf; none for an empty tree, as where everything is frozen.

    Put together in an array, and not one by one: XLA for CPUs would fuse such a chain with the reductions themselves,
    into one loop on one core.
    """
    each = [reduce(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.stack(each) if each else jnp.zeros(0, jnp.float32)


def tree_distance(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """The L2 norm of the difference of two trees of the same structure, in float32; 0 for empty trees.

    Works on the leaves, which are arrays: nothing here has a `.value`.

    Raises:
        ValueError: A leaf is in one tree only, or has two shapes; names it.
    """
    shapes, others = _shapes(a), _shapes(b)
    for path in sorted(shapes.keys() | others.keys()):
        # Without this, [1, 3] would be broadcast over [2, 3].
        if shapes.get(path) != others.get(path):
            found, other = (f"{list(s[path])}" if path in s else "absent" for s in (shapes, others))
            raise ValueError(f"the trees do not belong together: {path} is {found} in one and {other} in the other")
    return global_norm(jax.tree.map(lambda x, y: x.astype(jnp.float32) - y.astype(jnp.float32), a, b))


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {parameter_path(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def reduce_steps(
    each: Mapping[str, Sequence[float] | np.ndarray], *, first_step: int = 0, accumulation_steps: int = 1
) -> dict[str, float]:
    """One value for each metric over the steps of a log interval.

    Maxima are reduced by the maximum and minima by the minimum: their mean would be neither. The learning rate is the
    last step's; everything else is averaged. NaN comes through every one of them. What describes an update
    (`update_norm`, `update_ratio`) is averaged over the steps that are updates, and is absent where none is: with
    accumulated gradients the other steps move nothing, and their zeros would hide the size of those that do.

    Args:
        each: Every step's values by metric.
        first_step: The number of the first of these steps.
        accumulation_steps: Step `n` is an update where this divides `n + 1`.
    """
    reduced: dict[str, float] = {}
    for name, values in each.items():
        array = np.asarray(values, np.float64)
        if name in _OF_UPDATES:
            array = array[(first_step + 1 + np.arange(len(array))) % accumulation_steps == 0]
        if len(array):
            reduced[name] = _reduce(name, array)
    return reduced


def _reduce(name: str, values: np.ndarray) -> float:
    if name.endswith("_max"):
        return float(np.max(values))
    if name.endswith("_min"):
        return float(np.min(values))
    if name == "learning_rate":
        return float(values[-1])
    return float(np.mean(values))


def metrics_line(values: Mapping[str, float]) -> str:
    """`loss=0.0234, grad_norm=1.234, …`: the metrics that a person watches."""
    return ", ".join(f"{name}={values[name]:.4g}" for name in _SHOWN if name in values)
