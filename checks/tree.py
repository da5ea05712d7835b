"""`tree.*`: what the step reduces over trees of parameters, against numpy in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from checks.context import CheckContext
from checks.trace import abstract_state, paths
from checks.tree_cases import MANY, Case, distance_cases, many_problems, mismatch_problems, problems_of, reduction_cases
from preflight.checklist import Check, Hint, Outcome, failed, passed

# Enough to tell an axis that is reduced from one that is not, and small enough for 3.2 billion parameters' tree.
_MAX_AXIS = 3


def _run_tree(context: CheckContext) -> dict[str, Any]:
    """Random numbers in the structure of the run's gradients, cut to a few per axis; drawn once for all checks."""
    import numpy as np

    from preflight.training.state import trainable

    def draw() -> dict[str, Any]:
        rng = np.random.default_rng(0)
        leaves = paths(trainable(context.run, abstract_state(context).params))
        return {
            path: rng.standard_normal([min(n, _MAX_AXIS) for n in leaf.shape]).astype(np.float32)
            for path, leaf in leaves.items()
        }

    return context.once("run-tree", draw)


def _reduce(context: CheckContext) -> Outcome:
    tree = _run_tree(context)
    cases = reduction_cases(tree)
    problems = [*problems_of("abs_max", cases), *problems_of("abs_mean", cases), *many_problems("abs_mean", 1.5)]
    return _outcome(problems, "grad_max and grad_mean", cases, f"{_single(tree)}; and the mean of {MANY:,} elements")


def _norms(context: CheckContext) -> Outcome:
    tree = _run_tree(context)
    cases = reduction_cases(tree)
    problems = [*problems_of("global_norm", cases), *many_problems("global_norm", 1.5 * math.sqrt(MANY))]
    covered = f"{_single(tree)}; and over {MANY:,} elements"
    return _outcome(problems, "grad_norm, param_norm and update_norm", cases, covered)


def _ema_distance(context: CheckContext) -> Outcome:
    tree = _run_tree(context)
    cases = distance_cases(tree)
    problems = [*problems_of("tree_distance", cases), *mismatch_problems()]
    covered = (
        f"the run's {len(tree)} leaves with themselves and with others, empty, single, bfloat16, None, NaN and inf; "
        "trees that do not belong together are refused by the leaf's name"
    )
    return _outcome(problems, "ema_distance", cases, covered)


def _single(tree: dict[str, Any]) -> str:
    return f"the run's {len(tree)} leaves, empty, single, bfloat16, size 0, None, NaN and inf"


def _outcome(problems: list[str], metrics: str, cases: list[Case], covered: str) -> Outcome:
    if problems:
        return failed(
            problems[0],
            measured={"cases": len(cases), "wrong": len(problems)},
            expected={"wrong": 0},
            evidence=tuple(problems[1:10]),
            hint=Hint(text=f"{metrics} would be logged wrong; please report this with the lines above"),
        )
    verb = "equals" if metrics == "ema_distance" else "equal"
    return passed(
        f"{metrics} {verb} a float64 oracle on {len(cases)} trees: {covered}",
        measured={"cases": [case.name for case in cases]},
    )


def _check(
    id_: str, title: str, run: Callable[[CheckContext], Outcome], doc: str, *requires: str
) -> Check[CheckContext]:
    return Check(
        id=id_,
        title=title,
        level="standard",
        severity="fail",
        requires=("config.model", *requires),
        timeout_s=180,
        run=run,
        doc=doc,
    )


_TREES = (
    "Compares with numpy in float64 on a tree with the run's own structure and on the awkward ones: empty, a single "
    "leaf, bfloat16, a leaf of size 0, None, NaN and inf, which must come through: a number that hides a NaN hides a "
    "dead run."
)
CHECKS = (
    _check(
        "tree.reduce",
        "Maxima and means over gradients are right",
        _reduce,
        f"Runs the reductions behind grad_max and grad_mean, compiled as in the step. {_TREES} A mean over 3.2e9 "
        "elements must not overflow the count.",
    ),
    _check(
        "tree.norms",
        "Norms over trees are right",
        _norms,
        f"Runs the reduction behind grad_norm, param_norm and update_norm, compiled as in the step. {_TREES}",
    ),
    _check(
        "tree.ema-distance",
        "The distance to the moving average is right",
        _ema_distance,
        f"Runs the reduction behind ema_distance, whether or not this run keeps an average. {_TREES} Identical trees "
        "have distance 0; trees of different structure or shapes must be refused with the leaf's path.",
        "tree.norms",  # of which it is made
    ),
)
