"""Trees to reduce, an oracle in float64 for each reduction, and what differs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from preflight.blame import one_line

# More elements than an int32 counts, in leaves of more than that and of fewer: pi0 has 3.2e9 parameters.
_MANY = {"a": 2**31, "b": 1_090_564_880}
MANY = sum(_MANY.values())


@dataclasses.dataclass(frozen=True)
class Case:
    """A tree, or several, to reduce."""

    name: str
    trees: tuple[Any, ...]  # leaves are numpy arrays or None


def reduction_cases(run_tree: dict[str, Any]) -> list[Case]:
    """The run's own tree and the awkward ones."""
    import jax.numpy as jnp
    import numpy as np

    f32 = np.float32
    cases = {
        f"the run's {len(run_tree)} leaves": run_tree,
        "an empty tree": {},
        "a single negative leaf": {"w": np.array([-3.0, 2.0], f32)},
        "a bfloat16 leaf": {"w": np.array([1.5, -0.25] * 200, jnp.bfloat16)},
        "a leaf of size 0": {"w": np.zeros((0, 4), f32), "b": np.ones(2, f32)},
        "a tree with None": {"w": np.ones(3, f32), "frozen": None},
        "a tree with NaN": {"w": np.ones(3, f32), "bad": np.array([1.0, np.nan], f32)},
        "a tree with inf": {"w": np.ones(3, f32), "bad": np.array([1.0, -np.inf], f32)},
    }
    return [Case(name, (tree,)) for name, tree in cases.items()]


def distance_cases(run_tree: dict[str, Any]) -> list[Case]:
    """Pairs of trees: the parameters and their average."""
    import jax.numpy as jnp
    import numpy as np

    f32 = np.float32
    moved = {path: leaf * f32(1.01) + f32(0.5) for path, leaf in run_tree.items()}
    bad, good = {"w": np.array([np.nan, 1.0], f32)}, {"w": np.ones(2, f32)}
    cases = {
        f"the run's {len(run_tree)} leaves and themselves": (run_tree, run_tree),
        f"the run's {len(run_tree)} leaves and their like": (run_tree, moved),
        "empty trees": ({}, {}),
        "single leaves": ({"w": np.array([3.0, 0.0], f32)}, {"w": np.array([0.0, 4.0], f32)}),
        "bfloat16 averages": ({"w": np.full(300, 1.0, f32)}, {"w": np.full(300, 1.25, jnp.bfloat16)}),
        "trees with None": ({"w": np.ones(3, f32), "x": None}, {"w": np.zeros(3, f32), "x": None}),
        "NaN in the parameters": (bad, good),
        "NaN in the average": (good, bad),
        "inf in the average": (good, {"w": np.array([1.0, np.inf], f32)}),
    }
    return [Case(name, trees) for name, trees in cases.items()]


def _abs_max(values: Any) -> float:
    import numpy as np

    return float(np.max(np.abs(values), initial=0))


def _abs_mean(values: Any) -> float:
    import numpy as np

    return float(np.mean(np.abs(values))) if values.size else 0.0


def _norm(values: Any) -> float:
    import numpy as np

    return math.sqrt(float(np.sum(np.square(values))))


_ORACLES: dict[str, Callable[[Any], float]] = {
    "abs_max": _abs_max,
    "abs_mean": _abs_mean,
    "global_norm": _norm,
    "tree_distance": _norm,
}


def problems_of(reduction: str, cases: list[Case]) -> list[str]:
    """Compares one of the step's reductions with its oracle.

    Args:
        reduction: A function's name in `preflight.training.metrics`.
        cases: What to reduce.

    Returns:
        A line for each case that differs by more than float32's rounding, or that the function does not survive.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from preflight.training import metrics

    compiled = _compiled(getattr(metrics, reduction))
    problems = []
    for case in cases:
        expected = _ORACLES[reduction](_flat(case.trees))
        try:
            found = float(compiled(*jax.tree.map(jnp.asarray, case.trees)))
        except Exception as error:  # noqa: BLE001
            problems.append(f"{reduction} dies on {case.name}: {one_line(error)}; expected {expected:.8g}")
            continue
        if not np.isclose(found, expected, rtol=1e-5, atol=1e-7, equal_nan=True):
            problems.append(f"{reduction} of {case.name} is {found:.8g}, numpy says {expected:.8g}")
    return problems


def many_problems(reduction: str, expected: float) -> list[str]:
    """The same over 3.2e9 elements of 1.5: XLA multiplies by their number instead of making them.

    Args:
        reduction: A function's name in `preflight.training.metrics`.
        expected: Its value.
    """
    import jax.numpy as jnp

    from preflight.training import metrics

    compiled = _compiled_over_many(getattr(metrics, reduction))
    total = f"{MANY:,} elements"
    try:
        found = float(compiled(jnp.float32(1.5)))
    except Exception as error:  # noqa: BLE001
        return [f"{reduction} dies on {total}: {one_line(error)}"]
    if math.isclose(found, expected, rel_tol=1e-5):
        return []
    return [f"{reduction} of {total} of 1.5 is {found:.8g}, expected {expected:.8g}"]


# Jitted, as in the step: op by op, each of a tree's many shapes would be compiled on its own. Kept, since the trees of
# the next checklist in this process are mostly the same.
@functools.lru_cache(maxsize=16)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import jax

    return jax.jit(function)


@functools.lru_cache(maxsize=16)
def _compiled_over_many(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    import jax
    import jax.numpy as jnp

    return jax.jit(lambda x: function({name: jnp.broadcast_to(x, (n,)) for name, n in _MANY.items()}))


def _flat(trees: tuple[Any, ...]) -> Any:
    """All elements in float64: of a tree, or of the difference of two."""
    import jax
    import numpy as np

    leaves = [[np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)] for tree in trees]
    with np.errstate(invalid="ignore"):
        parts = leaves[0] if len(trees) == 1 else [a - b for a, b in zip(*leaves, strict=True)]
    return np.concatenate([*parts, np.zeros(0)])


def mismatch_problems() -> list[str]:
    """Trees that do not belong together must be refused by name: a distance over what they share would look sound."""
    import jax
    import numpy as np

    from preflight.training import metrics

    ones = {"deep": {"w": np.ones((2, 3), np.float32)}}
    others = {
        "a leaf of another name": {"deep": {"v": np.ones((2, 3), np.float32)}},
        "a leaf more": {"deep": {"w": ones["deep"]["w"], "v": np.ones(3, np.float32)}},
        "a leaf of another shape": {"deep": {"w": np.ones((1, 3), np.float32)}},
    }
    problems = []
    for name, other in others.items():
        try:
            found = jax.eval_shape(metrics.tree_distance, ones, other)
        except Exception as error:  # noqa: BLE001
            if "deep/" not in str(error):
                problems.append(f"tree_distance of trees with {name} does not name the leaf: {one_line(error)}")
        else:
            problems.append(f"tree_distance of trees with {name} is {found}: it must refuse them")
    return problems
