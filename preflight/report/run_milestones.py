"""The steps that a run pictures, saves and keeps, from its `config.json` alone.

The training loop has the same rules over a run's facts, which a report has not: a run's folder outlives its config.
"""

from __future__ import annotations

from typing import Any, TypeGuard

_MOST_STEPS = 1 << 24  # beyond, what the file says is no run's plan


def milestone_steps(config: dict[str, Any] | None) -> list[int] | None:
    """The steps with camera views: the first, each save, the last, and those the config names; None if unknown."""
    plan = _plan(config)
    if plan is None or config is None:
        return None
    steps, interval = plan
    named = config.get("milestones")
    extra = [step for step in named if _whole(step)] if isinstance(named, list) else []
    return sorted(s for s in {0, steps - 1, *range(0, steps, interval), *extra} if 0 <= s < steps)


def save_steps(config: dict[str, Any] | None) -> list[int] | None:
    """The steps whose checkpoint is saved: multiples of the save interval, and the last; None if unknown."""
    plan = _plan(config)
    return None if plan is None else sorted({*range(plan[1], plan[0], plan[1]), plan[0] - 1})


def kept_steps(config: dict[str, Any] | None) -> list[int] | None:
    """The checkpoints that are still there at the end: multiples of `keep_period`, and the last; None if unknown."""
    saves = save_steps(config)
    if saves is None or config is None:
        return None
    period = config.get("keep_period")
    return [s for s in saves if s == saves[-1] or (_whole(period) and s % period == 0)]


def _plan(config: dict[str, Any] | None) -> tuple[int, int] | None:
    steps, interval = (None, None) if config is None else (config.get("num_train_steps"), config.get("save_interval"))
    if not (_whole(steps) and _whole(interval)) or steps > _MOST_STEPS:
        return None
    return steps, interval


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
