"""The saves of a run: one under way at a time, and one that fails does not end the training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from preflight.errors import PreflightError
from preflight.training import checkpoints
from preflight.training.folder import saved_steps
from preflight.training.state import TrainState


class Saves:
    """Saves checkpoints in the background.

    Args:
        manager: The run's checkpoints.
        on_failure: Told the step of a save that failed, what happened, and what to do about it.
        on_saved: Told the step of each that succeeded.
    """

    def __init__(
        self,
        manager: ocp.CheckpointManager,
        on_failure: Callable[[int, str, str], None],
        on_saved: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._manager, self._on_failure, self._on_saved = manager, on_failure, on_saved
        self.under_way: int | None = None  # the step whose save was started last and is not known to have ended
        self.saved: int | None = None  # the last step whose save succeeded, in this process
        self.failure: PreflightError | None = None  # of the last save; None where it succeeded, as far as is known

    def start(self, step: int, state: TrainState, assets: dict[str, bytes]) -> None:
        """Starts a save, after the one under way is finished; the copy off the device is finished on return.

        Args:
            step: The step that was just made.
            state: The state after it.
            assets: Files to keep with it, by their path below `assets/`.
        """
        self.finish()
        try:
            checkpoints.save(self._manager, step, state, assets, pending=None)
        except PreflightError as error:
            self._fail(step, error)
        else:
            self.under_way, self.failure = step, None

    def look(self) -> None:
        """Learns whether the save under way has failed; waits for nothing."""
        # Of several processes all have to ask together.
        if jax.process_count() == 1 and self.under_way is not None and not self._manager.is_saving_in_progress():
            self.finish()

    def finish(self) -> None:
        """Waits for the save under way."""
        if self.under_way is None:
            return
        step, self.under_way = self.under_way, None
        try:
            checkpoints.finish(self._manager, step)
        except PreflightError as error:
            self._fail(step, error)
        else:
            self.saved = step
            self._on_saved(step)

    def close(self) -> None:
        """Waits for the save under way and closes the run's checkpoints.

        Raises:
            PreflightError: The last save failed.
        """
        self.finish()
        # After a save that failed at its start, Orbax says here once more what the background had to say of it.
        with contextlib.suppress(OSError, ValueError):
            self._manager.close()
        if self.failure is not None:
            raise PreflightError(f"the last save failed: {self.failure.message}; {self._kept()}", self.failure.hint)

    def _fail(self, step: int, error: PreflightError) -> None:
        self.failure = error
        what = f"{error.message}. The training goes on and will try again at the next save; {self._kept()}"
        self._on_failure(step, what, error.hint or "")

    def _kept(self) -> str:
        steps = saved_steps(Path(self._manager.directory))
        return f"checkpoint {steps[-1]} is the newest that is kept" if steps else "no checkpoint is kept so far"
