"""A run that tells what its loss did while a step was traced."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from preflight.runs import Run


@dataclasses.dataclass(frozen=True)
class ObservedRun:
    """A copy of a run that notes what its `compute_loss` does each time it is traced."""

    run: Run
    returned: list[Any]  # shapes and dtypes in place of arrays
    raised: list[Exception]


def observe(run: Run) -> ObservedRun:
    """Copies a run and listens to the copy's `compute_loss`."""
    observed = ObservedRun(copy.copy(run), [], [])

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        import jax

        try:
            loss = run.compute_loss(*args, **kwargs)
        except Exception as error:
            observed.raised.append(error)
            raise
        # Not the tracers themselves: they would keep the whole trace in memory.
        observed.returned.append(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "dtype") else x, loss)
        )
        return loss

    # On the instance: whatever class the run is of, it stays of it.
    object.__setattr__(observed.run, "compute_loss", compute_loss)
    return observed
