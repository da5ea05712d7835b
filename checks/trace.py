"""The run traced abstractly, at full size: shapes and dtypes without the memory or the time of the arrays."""

from __future__ import annotations

import dataclasses
import sysconfig
import traceback
from pathlib import Path
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


@dataclasses.dataclass(frozen=True)
class StateBytes:
    """Bytes of what a train step holds before any activation."""

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


def state_bytes(context: CheckContext) -> StateBytes:
    """Exact bytes from the traced shapes; nothing is allocated."""
    from preflight.training.state import trainable

    state, run = abstract_state(context), context.run
    return StateBytes(
        parameters=tree_bytes(state.params),
        optimizer=tree_bytes(state.opt_state),
        ema=tree_bytes(state.ema_params),
        gradients=tree_bytes(trainable(run, state.params)),
        batch=tree_bytes(run.batch_spec(run.facts.batch_size)),
    )


def tree_bytes(tree: Any) -> int:
    """Bytes of all leaves."""
    import jax

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def paths(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of parameters by their path, joined by `/`."""
    import jax

    from preflight.models.params import parameter_path

    return {parameter_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def user_line(error: BaseException) -> str | None:
    """The innermost line of a traceback that is neither ours nor an installed package's, else the innermost of ours."""
    installed = Path(sysconfig.get_paths()["purelib"])
    own = Path(__file__).resolve().parent.parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(installed) and not frame.filename.startswith("<")
    ]
    users = [f for f in frames if not any(Path(f.filename).is_relative_to(own / d) for d in ("preflight", "checks"))]
    chosen = (users or frames)[-1:] if frames else []
    return f"{chosen[0].filename}:{chosen[0].lineno}: {chosen[0].line}" if chosen else None
