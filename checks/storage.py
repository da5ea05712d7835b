"""`storage.*`: the place for checkpoints."""

from __future__ import annotations

import tempfile

from checks import storage_dataset_cache, storage_frame_cache, storage_resume, storage_write, units
from checks.context import CheckContext, with_settings
from checks.trace import state_bytes
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.errors import UsageError
from preflight.training.folder import kept_steps, nearest_existing, refuse_folder, saved_steps

_ELSEWHERE = Hint(text="choose another place: --set checkpoint_base_dir=DIR")
_GIB = 2**30


def _checkpoint_dir(context: CheckContext) -> Outcome:
    base = context.run.facts.checkpoint_base_dir
    ancestor = nearest_existing(base)
    if not ancestor.is_dir():
        return failed(f"{ancestor} is a file: {base} cannot be made below it", hint=_ELSEWHERE)
    try:
        # An unnamed file: a verdict of "not cleared" leaves nothing behind.
        with tempfile.TemporaryFile(dir=ancestor) as file:
            file.write(b"preflight")
    except OSError as error:
        return failed(f"{ancestor} cannot be written: {error.strerror or error}", hint=_ELSEWHERE)
    folder = context.folder
    if folder is None:
        return passed(f"{ancestor} can be written; the run's folder will be below {base}")
    try:
        refuse_folder(folder, overwrite=context.overwrite, resume=context.resume)
    except UsageError as error:
        return failed(error.message, hint=Hint(text=error.hint or ""))
    steps = saved_steps(folder)
    if context.overwrite and steps:
        return warned(
            f"--overwrite will delete {folder} with {len(steps)} checkpoint(s): {', '.join(map(str, steps))}",
            hint=Hint(text="to keep them, choose another --exp-name or --resume"),
        )
    if context.resume:
        return passed(f"{folder} goes on from step {steps[-1] + 1}")
    return passed(f"{folder} can be made")


def _space(context: CheckContext) -> Outcome:
    facts = context.run.facts
    size = state_bytes(context).checkpoint
    place = nearest_existing(facts.checkpoint_base_dir)
    free = context.probes.disk_free(place)
    # One more than is kept: the newest is written before the one it replaces is deleted.
    count = len(kept_steps(facts)) + 1
    needed = size * count
    measured = {"checkpoint_gib": round(size / _GIB, 2), "checkpoints": count, "free_gib": round(free / _GIB, 2)}
    summary = (
        f"{count} checkpoints of {units.size(size)} need {units.size(needed)}, {place} has {units.size(free)} free"
    )
    if size > free:
        return failed(f"not even one fits: {summary}", measured=measured, hint=_ELSEWHERE)
    if needed > free:
        return failed(
            summary,
            measured=measured,
            hint=Hint(
                text="keep fewer: a larger keep_period, or none",
                commands=with_settings(context, "keep_period=none"),
            ),
        )
    return passed(summary, measured=measured)


CHECKS = (
    Check(
        id="storage.checkpoint-dir",
        title="Checkpoints can be written",
        level="quick",
        severity="fail",
        failures=("F39",),
        run=_checkpoint_dir,
        doc="Writes an unnamed file at the nearest existing folder of the checkpoints' path, which leaves "
        "nothing behind. Before a training it also looks at the run's own folder: is it taken, what would "
        "--overwrite delete, what would --resume go on from.",
    ),
    storage_resume.CHECK,
    Check(
        id="storage.space",
        title="Checkpoints fit on the disk",
        level="standard",
        severity="fail",
        failures=("F40",),
        timeout_s=180,
        requires=("config.model",),
        run=_space,
        doc="Bytes of one checkpoint (parameters, optimizer state, moving average: exact, from the traced "
        "shapes) times the checkpoints that keep_period keeps plus the one being written, against the free space.",
    ),
    storage_dataset_cache.CHECK,
    storage_frame_cache.CHECK,
    storage_write.CHECK,
)
