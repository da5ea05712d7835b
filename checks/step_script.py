"""The user's own training script beside ours: whether its train step can be traced, and what it logs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from checks.context import CheckContext
from checks.trace import shape_text, state_problems
from preflight.blame import one_line, user_line
from preflight.runs import Run


@dataclasses.dataclass(frozen=True)
class ScriptReport:
    """What was found in a script, over the branches that `ema_decay` switches."""

    path: Path | None  # None: it could not even be imported
    problems: tuple[str, ...]
    lines: tuple[str, ...]  # of the script, where it raised
    branches: tuple[str, ...]
    metrics: tuple[str, ...]  # that it logs, over all branches


def look_at_script(context: CheckContext) -> ScriptReport | None:
    """Traces the script's train step as configured and with the moving average switched; None where there is none."""
    run = context.run
    branches: dict[str, Run] = {"as configured": run}
    branches |= {name: other for name, other in run.branches().items() if _differs_in_average_alone(run, other)}
    path: Path | None = None
    problems: list[str] = []
    lines: list[str] = []
    logged: dict[str, None] = {}
    for name, branch in branches.items():
        where = "as configured" if branch is run else f"with {name}"
        try:
            step = branch.script_step()
        except Exception as error:  # noqa: BLE001
            problems.append(f"the script's own train step cannot be traced {where}: {one_line(error)}")
            lines += [line for line in [user_line(error, or_ours=False)] if line]
            continue
        if step is None:
            return None
        path = step.path
        problems += [f"{path.name}, {where}: {problem}" for problem in _metric_problems(step.metrics)]
        problems += [f"{path.name}, {where}: {problem}" for problem in state_problems(step.before, step.after)]
        logged |= dict.fromkeys(step.metrics if isinstance(step.metrics, dict) else ())
    return ScriptReport(path, tuple(problems), tuple(lines), tuple(branches), tuple(logged))


def _differs_in_average_alone(run: Run, other: Run) -> bool:
    return run.facts.lora == other.facts.lora and (run.facts.ema_decay is None) != (other.facts.ema_decay is None)


def _metric_problems(metrics: Any) -> list[str]:
    """What would not survive the script's own logging, which takes a mean over steps and writes a number."""
    import jax.numpy as jnp

    if not isinstance(metrics, dict):
        return [f"its train step gives {shape_text(metrics)} in the place of a dict of metrics"]
    problems = []
    for name, value in metrics.items():
        if getattr(value, "shape", None) != ():
            problems.append(f"the metric {name} is {shape_text(value)}, not a scalar")
        elif not jnp.issubdtype(value.dtype, jnp.number):
            problems.append(f"the metric {name} is {shape_text(value)}, not a number")
    return problems
