"""`step.*`: the whole train step, in every branch that an override can switch on, traced at full size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from checks import roofline
from checks.context import CheckContext
from checks.step_script import look_at_script
from checks.trace import shape_text, state_paths, state_problems
from checks.traced_step import TracedStep, branch, configured, resumed
from preflight.blame import one_line, user_line
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.runs import command_line

# What a step logs, by the names that metrics.jsonl, wandb and the report use.
METRICS = (
    "loss",
    "grad_norm",
    "param_norm",
    "loss_std",
    "loss_max",
    "loss_min",
    "grad_max",
    "grad_mean",
    "update_norm",
    "update_ratio",
    "learning_rate",
)
WITH_EMA = "ema_distance"
_CONFIGURED = "as configured"


def _contract(context: CheckContext) -> Outcome:
    traced: dict[str, TracedStep] = {}
    problems: list[str] = []
    evidence: list[str] = []
    branches: dict[str, Callable[[], TracedStep]] = {
        _CONFIGURED: lambda: configured(context),
        "resumed": lambda: resumed(configured(context)),
        **{
            name: lambda run=run: branch(run)  # type: ignore[misc]
            for name, run in context.run.branches().items()
        },
    }
    for name, trace in branches.items():
        if name == "resumed" and problems:
            continue  # the configured step is broken: resuming it says nothing new
        try:
            traced[name] = trace()
        except Exception as error:  # noqa: BLE001
            problems.append(f"{_with(name)} the train step cannot be traced: {one_line(error)}")
            evidence += [line for line in [user_line(error)] if line]
            continue
        problems += [f"{_with(name)} {problem}" for problem in step_problems(traced[name])]
    script = look_at_script(context)
    if script is not None:
        problems += script.problems
        evidence += script.lines
    if problems:
        return failed(
            problems[0],
            measured={"branches": list(branches), "problems": len(problems)},
            expected={
                "metrics": f"{len(METRICS)} floating scalars, and {WITH_EMA} with a moving average",
                "state": "the leaves that it had before the step",
            },
            evidence=(*evidence, *problems[1:10]),
            hint=Hint(
                text="no figure of the config mends this, the step's code does; then look again",
                commands=(command_line(context.run.facts, "check", "--only", "step.*"),),
            ),
        )
    own = traced[_CONFIGURED]
    leaves = {name: len(state_paths(step.before)) for name, step in traced.items()}
    own_script, lacking = "", []
    if script is not None and script.path is not None:
        lacking = [name for name in METRICS if name not in script.metrics]
        own_script = f"; {script.path.name}, traced with the average on and off, logs {', '.join(script.metrics)}"
        if lacking:
            own_script += f" and lacks {len(lacking)} of the metrics that `preflight train` logs"
    return passed(
        f"{len(traced)} branches traced at full size ({', '.join(traced)}): {len(own.metrics)} scalar metrics, and "
        f"after the step each of {leaves[_CONFIGURED]} leaves of the state is as before it{own_script}",
        measured={
            "branches": list(traced),
            "metrics": sorted(own.metrics),
            "state_leaves": leaves,
            **({} if script is None else {"script_metrics": list(script.metrics), "script_lacks": lacking}),
        },
        evidence=(f"{script.path} lacks: {', '.join(lacking)}",) if script is not None and lacking else (),
    )


def _with(name: str) -> str:
    return {_CONFIGURED: "as configured,", "resumed": "after a resume"}.get(name, f"with {name}")


def step_problems(step: TracedStep) -> list[str]:
    """What is wrong with a traced step's metrics and state, in plain words."""
    ema = step.observed.run.facts.ema_decay is not None
    return [*metric_problems(step.metrics, ema=ema), *state_problems(step.before, step.after)]


def metric_problems(metrics: Any, *, ema: bool) -> list[str]:
    """How a step's metrics differ from `METRICS`.

    Args:
        metrics: Traced.
        ema: Whether an average is kept.
    """
    import jax.numpy as jnp

    if not isinstance(metrics, dict):
        return [f"the step's metrics are {shape_text(metrics)}, not a dict"]
    expected = {*METRICS, *([WITH_EMA] if ema else [])}
    problems = [f"the metric {name} is missing" for name in sorted(expected - metrics.keys())]
    for name, value in metrics.items():
        if name not in expected:
            problems.append(
                f"the metric {name} is logged where no moving average is kept"
                if name == WITH_EMA
                else f"the metric {name} has a name that nothing reads"
            )
        elif getattr(value, "shape", None) != ():
            problems.append(f"the metric {name} is {shape_text(value)}, not a scalar")
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            problems.append(f"the metric {name} is {shape_text(value)}, not floating")
    return problems


def _recompile(context: CheckContext) -> Outcome:
    import jax

    step = configured(context)
    states, counts = [step.before, step.after], [step.num_traces]
    for _ in range(2):
        states.append(step.again(states[-1])[0])
        counts.append(step.num_traces)
    if counts[0] == counts[-1]:
        return passed(
            f"the second and third step run what the first compiled: all {len(jax.tree.leaves(step.after))} leaves of "
            "the state keep shape, dtype and weak type",
            measured={"traces": 1},
        )
    changed = _changes(states[0], states[1]) or _changes(states[1], states[2]) or ["no leaf of the state shows why"]
    lasting = counts[2] > counts[1]
    summary = "every step compiles anew" if lasting else "the second step compiles the whole train step once more"
    return (failed if lasting else warned)(
        f"{summary}: {changed[0]}",
        measured={"traces_in_3_steps": 1 + counts[-1] - counts[0]},
        expected={"traces_in_3_steps": 1},
        evidence=tuple(changed[1:10]),
        hint=Hint(
            text="keep numbers in the state as arrays with a dtype, jnp.asarray(x, jnp.float32): a Python number is "
            "weakly typed and becomes something else in the step; a static field must not change",
            commands=(command_line(context.run.facts, "check", "--only", "step.*"),),
        ),
    )


def _changes(before: Any, after: Any) -> list[str]:
    import jax

    old, new = state_paths(before), state_paths(after)
    changed = [
        f"{path} is {_typed(old[path])} before a step and {_typed(new[path])} after it"
        for path in old
        if path in new and _typed(old[path]) != _typed(new[path])
    ]
    if not changed and jax.tree.structure(before) != jax.tree.structure(after):
        changed.append(
            f"a static field of the state changes: {_fields(before)} before a step, {_fields(after)} after it"
        )
    return changed


def _typed(leaf: Any) -> str:
    return f"{'weakly typed ' if leaf.weak_type else ''}{shape_text(leaf)}"


def _fields(state: Any) -> str:
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return ", ".join(f"{name}={value!r}" for name, value in values.items() if isinstance(value, int | float | str))


CHECKS = (
    Check(
        id="step.contract",
        title="The train step keeps its contract in every branch",
        level="standard",
        severity="fail",
        requires=("grad.has-aux",),
        timeout_s=180,
        run=_contract,
        doc="Traces the very function that training compiles, at full size and without memory, in every branch: as "
        "configured, after a resume, and with the moving average and LoRA switched the other way, since `--set` can do "
        "that at any time. All metrics must be floating scalars with the names that the log and the report read, and "
        "the state after the step must have the same leaves as before it, with the same shapes and dtypes.",
    ),
    Check(
        id="step.recompile",
        title="A second step compiles nothing",
        level="standard",
        severity="fail",
        requires=("step.contract",),
        timeout_s=180,
        run=_recompile,
        doc="Feeds the traced step its own output, twice, and counts how often jax traces it anew: each time, training "
        "would stand still for a compile of the whole step. A Python number in the state (weakly typed), or a static "
        "field that changes, is the usual cause; the leaf is named.",
    ),
    roofline.CHECK,
)
