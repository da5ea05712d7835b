"""`tree.*`: reductions over parameter trees against an oracle."""

from __future__ import annotations

import functools
import math
from typing import Any

from checks.context import CheckContext
from checks.trace import abstract_state, paths
from preflight.checklist import Check, Hint, Outcome, failed, passed

# Enough to tell an axis that is reduced from one that is not, and small enough for 3.2 billion parameters' tree.
_MAX_AXIS = 3


def _reduce(context: CheckContext) -> Outcome:
    import jax.numpy as jnp
    import numpy as np

    from preflight.training.state import trainable

    gradients = paths(trainable(context.run, abstract_state(context).params))
    rng = np.random.default_rng(0)
    real = {
        path: rng.standard_normal([min(n, _MAX_AXIS) for n in leaf.shape]).astype(np.float32)
        for path, leaf in gradients.items()
    }
    cases: dict[str, dict[str, Any]] = {
        "the run's tree": real,
        "an empty tree": {},
        "a single negative leaf": {"w": np.array([-3.0, 2.0], np.float32)},
        "a bfloat16 leaf": {"w": np.array([1.5, -0.25] * 200, jnp.bfloat16)},
        "a leaf of size 0": {"w": np.zeros((0, 4), np.float32), "b": np.ones(2, np.float32)},
        "a tree with None": {"w": np.ones(3, np.float32), "frozen": None},
        "a tree with NaN": {**real, "bad": np.array([1.0, np.nan], np.float32)},
        "a tree with inf": {**real, "bad": np.array([1.0, -np.inf], np.float32)},
    }
    problems = [problem for name, tree in cases.items() for problem in reduction_problems(name, tree)]
    if problems:
        return failed(
            problems[0],
            evidence=tuple(problems[:10]),
            hint=Hint(text="a metric of the step would be wrong; please report this with the lines above"),
        )
    return passed(
        f"grad_max, grad_mean and norms equal a float64 oracle on {len(cases)} trees: the run's {len(real)} leaves "
        f"(cut to {_MAX_AXIS} per axis), empty, single, bfloat16, None, NaN and inf",
        measured={"cases": list(cases), "leaves": len(real)},
    )


def reduction_problems(name: str, tree: Any) -> list[str]:
    """Compares the step's reductions over a tree with numpy in float64.

    Args:
        name: What to call the tree.
        tree: Leaves are numpy arrays or None.

    Returns:
        A line for each reduction that differs by more than float32 rounding.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    values = np.concatenate([*leaves, np.zeros(0)])
    with np.errstate(invalid="ignore"):
        oracle = {
            "abs_max": float(np.max(np.abs(values), initial=0)),
            "abs_mean": float(np.mean(np.abs(values))) if values.size else 0.0,
            "global_norm": math.sqrt(float(np.sum(np.square(values)))),
        }
    found = {reduction: float(value) for reduction, value in _reductions()(jax.tree.map(jnp.asarray, tree)).items()}
    return [
        f"{reduction} of {name} is {found[reduction]:.8g}, numpy says {oracle[reduction]:.8g}"
        for reduction in oracle
        if not np.isclose(found[reduction], oracle[reduction], rtol=1e-5, atol=1e-7, equal_nan=True)
    ]


@functools.cache
def _reductions() -> Any:
    import jax

    from preflight.training import metrics

    names = ("abs_max", "abs_mean", "global_norm")
    # Jitted, as in the step: op by op, each of a tree's many shapes would be compiled on its own.
    return jax.jit(lambda tree: {name: getattr(metrics, name)(tree) for name in names})


CHECKS = (
    Check(
        id="tree.reduce",
        title="Reductions over gradients are right",
        level="standard",
        severity="fail",
        timeout_s=180,
        run=_reduce,
        doc="Runs the reductions that the step logs (grad_max, grad_mean, the norms) over a tree with the run's own "
        "structure and over the awkward ones (empty, single leaf, bfloat16, None, NaN, inf) and compares with numpy in "
        "float64. A NaN must come through: a maximum that hides it hides a dead run.",
    ),
)
