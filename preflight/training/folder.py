"""A run's folder: where it lies, which checkpoints it holds, and what stands in the way of starting in it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from preflight.config.load import is_folder_name
from preflight.errors import PreflightError, UsageError
from preflight.runs.protocol import Facts


def run_folder(facts: Facts, exp_name: str) -> Path:
    """`<checkpoint_base_dir>/<config>/<exp_name>`.

    Raises:
        UsageError: The experiment's name would leave the folder, or is no folder's name.
    """
    if not is_folder_name(exp_name):
        raise UsageError(
            f"--exp-name {exp_name!r} is not a plain folder name", "letters, digits, '-' and '_'; no '/', not '..'"
        )
    return facts.checkpoint_base_dir / facts.name / exp_name


def saved_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a run folder, ascending.

    Orbax writes into `<step>.orbax-checkpoint-tmp-…` and renames, so a plain number is a complete checkpoint.
    """
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal())


def unfinished_saves(folder: Path) -> list[Path]:
    """What saves that did not finish have left in a run folder, or the one under way writes into."""
    return sorted(path for path in folder.glob("*.orbax-checkpoint-tmp*") if path.is_dir())


def checkpoint_bytes(folder: Path, step: int) -> int:
    """The size of a complete checkpoint; 0 where it is gone."""
    return sum(path.stat().st_size for path in (folder / str(step)).rglob("*") if path.is_file())


def save_steps(facts: Facts) -> list[int]:
    """The steps whose checkpoint is saved: multiples of the save interval, and the last step."""
    return sorted({*range(facts.save_interval, facts.num_train_steps, facts.save_interval), facts.num_train_steps - 1})


def kept_steps(facts: Facts) -> list[int]:
    """The checkpoints that are still there at the end: multiples of `keep_period`, and the last."""
    last = facts.num_train_steps - 1
    return [s for s in save_steps(facts) if s == last or (facts.keep_period is not None and s % facts.keep_period == 0)]


def refuse_folder(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuses a start that would mix two runs or has nothing to go on from; touches nothing.

    Raises:
        UsageError: The folder exists and neither flag was given, both were given, or there is nothing to resume.
    """
    if overwrite and resume:
        raise UsageError("--overwrite and --resume contradict each other", "keep one of them")
    steps = saved_steps(folder)
    if resume and not steps:
        others = [p.name for p in sorted(folder.parent.glob("*")) if saved_steps(p)] if folder.parent.is_dir() else []
        raise UsageError(
            f"nothing to resume: {folder} {_without_checkpoint(folder)}",
            f"runs with checkpoints: {', '.join(others)}"
            if others
            else "start it anew with --overwrite"
            if folder.exists()
            else "start without --resume",
        )
    if not (overwrite or resume) and _taken(folder):
        raise UsageError(
            f"{folder} already exists" + (f" and holds {len(steps)} checkpoint(s): {_list(steps)}" if steps else ""),
            "choose another --exp-name, go on with --resume, or delete it with --overwrite",
        )


def _without_checkpoint(folder: Path) -> str:
    if not folder.exists():
        return "does not exist"
    if unfinished := unfinished_saves(folder):
        return f"holds no checkpoint, but {unfinished[-1].name}, the remains of a save that did not finish"
    return "holds no checkpoint"


def _taken(folder: Path) -> bool:
    try:
        return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise UsageError(f"{folder} cannot be looked at: {error.strerror or error}") from None


def create_folder(folder: Path, *, overwrite: bool) -> None:
    """Makes the run's folder, for this process alone; with `overwrite`, what is there is deleted.

    Raises:
        UsageError: Another process made it in the meantime.
        PreflightError: No permission, or a file stands in the way.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_made(folder, error) from error
    try:
        if overwrite:
            delete_folder(folder)
        elif folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        folder.mkdir()
    except FileExistsError:
        raise UsageError(
            f"{folder} was made by another process in the meantime", "give each run an --exp-name of its own"
        ) from None
    except OSError as error:
        raise _cannot_be_made(folder, error) from error


def _cannot_be_made(folder: Path, error: OSError) -> PreflightError:
    return PreflightError(
        f"the run folder {folder} cannot be made: {error.strerror or error}",
        "choose another place: --set checkpoint_base_dir=DIR",
    )


def delete_folder(folder: Path) -> None:
    """Deletes a run's folder and what earlier deletions left of it; a folder that is not there is none."""
    for leftover in folder.parent.glob(f".{folder.name}-deleted-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if folder.exists():
        # Renamed first: a deletion that is interrupted leaves no half of a run under the run's name.
        doomed = Path(tempfile.mkdtemp(prefix=f".{folder.name}-deleted-", dir=folder.parent))
        folder.rename(doomed / folder.name)
        shutil.rmtree(doomed)


def _list(steps: list[int]) -> str:
    return ", ".join(str(s) for s in steps[-5:])


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
