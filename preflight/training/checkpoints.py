"""Checkpoints in openpi's layout: `<step>/{params,train_state,assets}`, written by Orbax, asynchronous and atomic.

`params` holds the parameters that are served (the moving average where there is one) as `{"params": <nested dict>}`, so
that openpi's own policies load what is trained here. `train_state` holds the rest of the state, by openpi's names and
with the level `value` that its NNX states leave below each parameter: openpi's script resumes what was begun here, and
a run that openpi began is resumed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import logging
import re
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import future

from preflight.errors import PreflightError
from preflight.training.checkpoint_files import damage, list_files, whole_steps
from preflight.training.checkpoint_fit import misfit
from preflight.training.folder import unfinished_saves
from preflight.training.state import TrainState, pure

_WRITERS_S = 2.0  # how long what a failed save has left is deleted again


class _FilesHandler(ocp.AsyncCheckpointHandler):
    """Writes small files inside Orbax's temporary folder, so that they appear with the checkpoint or not at all."""

    def save(self, directory: Any, args: FilesSave) -> None:
        if jax.process_index() != 0:
            return
        for name, content in args.files.items():
            path = Path(directory) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    async def async_save(self, directory: Any, args: FilesSave) -> list[Any]:
        return [future.CommitFutureAwaitingContractedSignals(asyncio.to_thread(self.save, directory, args))]

    def restore(self, directory: Any, args: Any = None) -> dict[str, bytes]:
        root = Path(directory)
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@ocp.args.register_with_handler(_FilesHandler, for_save=True)
@dataclasses.dataclass
class FilesSave(ocp.args.CheckpointArgs):
    """Files to write, by their path below the item's folder."""

    files: dict[str, bytes]


@ocp.args.register_with_handler(_FilesHandler, for_restore=True)
@dataclasses.dataclass
class FilesRestore(ocp.args.CheckpointArgs):
    """Reads the files back."""


def open_manager(folder: Path, *, keep_period: int | None) -> ocp.CheckpointManager:
    """Opens the checkpoints of a run folder, which must exist.

    Args:
        folder: The run folder.
        keep_period: Checkpoints at multiples of it are kept for ever; of the others only the newest.
    """
    # Orbax reports every phase of every save at INFO, and a failed one with the tracebacks of all its threads before it
    # raises; what it raises is reported in a sentence.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return ocp.CheckpointManager(
        folder.absolute(),
        item_names=("params", "train_state", "assets"),
        item_handlers={
            "params": ocp.PyTreeCheckpointHandler(),
            "train_state": ocp.PyTreeCheckpointHandler(),
            "assets": _FilesHandler(),
        },
        options=ocp.CheckpointManagerOptions(
            max_to_keep=1,
            keep_period=keep_period,
            create=False,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                timeout_secs=7200, post_finalization_callback=lambda: _list_unfinished(folder.absolute())
            ),
        ),
    )


def _list_unfinished(folder: Path) -> None:
    """Called by Orbax when all of a checkpoint is written, and before it gets its name."""
    if jax.process_index() == 0:
        for unfinished in unfinished_saves(folder):
            list_files(unfinished)


def save(
    manager: ocp.CheckpointManager, step: int, state: TrainState, assets: dict[str, bytes], *, pending: int | None
) -> None:
    """Starts a save; the copy off the device is finished on return, the writing goes on in the background.

    Args:
        manager: The run's checkpoints.
        step: The step that was just made.
        state: The state after it.
        assets: Files to keep with it, by their path below `assets/`.
        pending: The step whose save may still be under way.

    Raises:
        PreflightError: That save, or this one's start, failed: disk full, no permission.
    """
    finish(manager, pending)
    if jax.default_backend() == "cpu":
        # On the CPU, device and host share memory: Orbax (0.11.13, at least) would go on writing from buffers that the
        # next step, to which they are donated, has overwritten.
        state = jax.tree.map(jnp.copy, state)
    params, train_state = _split(state)
    try:
        manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.PyTreeSave({"params": params}),
                train_state=ocp.args.PyTreeSave(train_state),
                assets=FilesSave(assets),
            ),
        )
    except (OSError, ValueError) as error:
        raise _save_failed(manager, step, error) from error


def finish(manager: ocp.CheckpointManager, pending: int | None) -> None:
    """Waits for the save under way.

    Raises:
        PreflightError: It failed.
    """
    try:
        manager.wait_until_finished()
    except (OSError, ValueError) as error:
        raise _save_failed(manager, pending, error) from error
    finally:
        _give_back()


def _give_back() -> None:
    """Gives freed memory back to the system: each of Orbax's writing threads has an arena of its own in glibc, which
    keeps what a save freed, and the next save's threads get others.

    Without it, twelve saves of 0.5 GiB grew to 3.5 times the checkpoint's bytes, with it they stay below 2 (jax 0.10.2,
    Orbax 0.12.8, glibc 2.36); it looks like the leak of openpi#721.
    """
    with contextlib.suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def restore(manager: ocp.CheckpointManager, step: int, abstract: TrainState) -> TrainState:
    """Restores the state of a step.

    Args:
        manager: The run's checkpoints.
        step: One of `saved_steps(folder)`.
        abstract: The state's shapes and dtypes (with shardings, where the arrays should be laid out).

    Raises:
        PreflightError: The checkpoint is damaged, or of another model.
    """
    if wrong := damage(Path(manager.directory) / str(step)):
        raise _damaged(manager, step, wrong)
    params, train_state = _split(abstract)
    wanted = {"params": {"params": params}, "train_state": train_state}
    try:
        # Compared before anything is read: Orbax names neither leaf nor shapes, and its readers die noisily.
        metadata = manager.item_metadata(step)
        found = {item: getattr(metadata[item], "tree", metadata[item]) for item in wanted}
        problem = misfit(found, wanted)
    except Exception as error:
        raise _damaged(manager, step, f"its metadata cannot be read ({_told(error)})") from error
    if problem is not None:
        raise PreflightError(f"{_cannot_be_restored(manager, step)}: {problem[0]}", problem[1])

    def args(item: Any) -> Any:
        return ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item))

    try:
        restored = manager.restore(step, args=ocp.args.Composite(**{item: args(tree) for item, tree in wanted.items()}))
    except Exception as error:
        raise _damaged(manager, step, _told(error)) from error
    return _merge(abstract, restored["params"]["params"], restored["train_state"])


def _damaged(manager: ocp.CheckpointManager, step: int, why: str) -> PreflightError:
    folder = Path(manager.directory)
    older = [whole for whole in whole_steps(folder) if whole < step]
    aside = f"mv {folder / str(step)} {folder / str(step)}.damaged"
    return PreflightError(
        f"{_cannot_be_restored(manager, step)}: {why}",
        f"copy the missing files again, or go on from checkpoint {older[-1]}, the newest whole one before it: {aside}, "
        "and resume again"
        if older
        else "there is no older checkpoint that is whole: copy the files again, or start anew under another --exp-name",
    )


def _cannot_be_restored(manager: ocp.CheckpointManager, step: int) -> str:
    return f"checkpoint {step} in {manager.directory} cannot be restored"


def _told(error: BaseException) -> str:
    """What the innermost error says: it names a file or an array, those around it describe the latter at length."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    files = [path for path in re.findall(r'local file \\*"([^"\\]+)', str(error)) if not path.endswith("/")]
    return f"{files[-1]} cannot be read" if files else _first_line(error)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _split(state: TrainState) -> tuple[Any, dict[str, Any]]:
    params, ema = _valued(state.params), state.ema_params
    # openpi's train state has these two fields as well: a structure and an average that are never stored.
    rest: dict[str, Any] = {
        "step": state.step,
        "opt_state": _pure(state.opt_state),
        "model_def": None,
        "ema_params": None,
    }
    if ema is None:
        return params, {**rest, "params": {}}
    return _valued(ema), {**rest, "params": params}


def _merge(abstract: TrainState, served: Any, rest: dict[str, Any]) -> TrainState:
    opt_state = jax.tree.unflatten(jax.tree.structure(abstract.opt_state), jax.tree.leaves(rest["opt_state"]))
    ema = abstract.ema_params is not None
    return dataclasses.replace(
        abstract,
        step=rest["step"],
        params=_fill(abstract.params, rest["params"] if ema else served),
        opt_state=opt_state,
        ema_params=_fill(abstract.ema_params, served) if ema else None,
    )


def _fill(state: Any, pure: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(pure))


def _pure(tree: Any) -> Any:
    """NNX states inside an optimizer's state as plain dicts, the same on every version of flax."""
    is_state = lambda x: isinstance(x, nnx.State)  # noqa: E731
    return jax.tree.map(lambda x: _valued(x) if is_state(x) else x, tree, is_leaf=is_state)


def _valued(state: nnx.State) -> dict[str, Any]:
    """The state's arrays as nested dicts, each array below a level `value`."""

    def below(node: Any) -> Any:
        return {name: below(child) for name, child in node.items()} if isinstance(node, dict) else {"value": node}

    return below(pure(state))


def _save_failed(manager: ocp.CheckpointManager, step: int | None, error: Exception) -> PreflightError:
    _delete_unfinished(Path(manager.directory))
    # What it has in mind of a step that failed, it would keep among those that are to be deleted later.
    manager.reload()
    full = any(mark in str(error) for mark in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC"))
    why = f"the disk of {manager.directory} is full" if full else _first_line(error)
    return PreflightError(
        f"{'a checkpoint' if step is None else f'checkpoint {step}'} could not be saved: {why}",
        "make room, or save elsewhere: --set checkpoint_base_dir=DIR; older checkpoints are untouched",
    )


def _delete_unfinished(folder: Path) -> None:
    """What a failed save has written is of no use, and on a full disk it is what fills it."""
    deadline = time.monotonic() + _WRITERS_S
    while leftovers := unfinished_saves(folder):
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        # Threads of the save that failed may be at work still, and make what was deleted again.
        time.sleep(0.05)
        if time.monotonic() > deadline:
            return
