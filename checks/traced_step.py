"""One branch of the train step, traced at full size through the very function that training compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from checks.context import CheckContext
from checks.observed import ObservedRun, observe
from checks.trace import abstract_state
from preflight.runs import Run

if TYPE_CHECKING:
    from preflight.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class TracedStep:
    """One branch of the train step, traced at full size."""

    observed: ObservedRun
    before: TrainState
    after: TrainState
    metrics: Any
    again: Callable[[TrainState], tuple[TrainState, Any]]  # from another state: traced anew only if that is needed

    @property
    def num_traces(self) -> int:
        """How often the step was traced so far, which is how often it would have been compiled."""
        return len(self.observed.returned)


def trace_step(run: Run, before: TrainState) -> TracedStep:
    """Traces the step that training compiles.

    Args:
        run: The branch.
        before: Its state, abstract.
    """
    import jax
    import numpy as np

    from preflight.training.step import compile_step

    observed = observe(run)
    # Abstract, and on one device: how a batch is divided changes no shape.
    step = compile_step(observed.run, jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",)))
    batch = run.batch_spec(run.facts.batch_size)

    def again(state: TrainState) -> tuple[TrainState, Any]:
        traced: Any = step  # a callable to the loop, which needs no more
        after, metrics = traced.eval_shape(jax.random.key(0), state, batch)
        return _unplaced(after), metrics

    after, metrics = again(before)
    return TracedStep(observed, before, after, metrics, again)


def _unplaced(state: Any, *, weak: bool = True) -> Any:
    """The state's shapes without where they lie, which the tracing cache would tell apart."""
    import jax

    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=weak and x.weak_type),
        state,
    )


def configured(context: CheckContext) -> TracedStep:
    """The step as the config has it; traced once for all checks."""
    return context.once("traced-step", lambda: trace_step(context.run, abstract_state(context)))


def branch(run: Run) -> TracedStep:
    """The step of another branch, from its first state."""
    import jax

    from preflight.training.state import init_state

    return trace_step(run, jax.eval_shape(lambda key: init_state(run, key), jax.random.key(0)))


def resumed(own: TracedStep) -> TracedStep:
    """The step from a state as a checkpoint gives it back."""
    import jax

    # A checkpoint keeps shapes and dtypes, and no weak types: where there are none, this is the same step.
    before = _unplaced(own.before, weak=False)
    if not any(leaf.weak_type for leaf in jax.tree.leaves(own.before)):
        return own
    return trace_step(own.observed.run, before)
