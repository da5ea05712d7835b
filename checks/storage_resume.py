"""`storage.resume`: whether `--resume` would go on with the same run, or with something that looks like it."""

from __future__ import annotations

import json
from pathlib import Path

from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped, warned
from preflight.runs import command_line
from preflight.training.checkpoint_files import ITEMS, damage, whole_steps
from preflight.training.folder import saved_steps, unfinished_saves
from preflight.training.tracking import choose_mode


def _resume(context: CheckContext) -> Outcome:
    folder, facts = context.folder, context.run.facts
    if not context.resume or folder is None:
        return skipped("nothing is resumed")
    steps = saved_steps(folder)
    if not steps:
        return skipped(f"{folder} holds no checkpoint to go on from (storage.checkpoint-dir)")
    newest, leftovers = steps[-1], [path.name for path in unfinished_saves(folder)]
    measured = {"newest": newest, "checkpoints": steps, "interrupted_saves": leftovers}
    if wrong := damage(folder / str(newest)):
        whole = [step for step in whole_steps(folder) if step < newest]
        older = f"the newest whole one before it is {whole[-1]}" if whole else "there is no whole one before it"
        return failed(
            f"checkpoint {newest} in {folder} is damaged: {wrong}; {older}",
            measured=measured,
            hint=Hint(text=f"move {folder / str(newest)} away and resume from an older one, or copy it again in whole"),
        )
    # The state that is saved at a step is the one after it.
    start = newest + 1
    if start >= facts.num_train_steps:
        longer = start + facts.save_interval
        words = ("--exp-name", folder.name, "--resume", "--set", f"num_train_steps={longer}")
        return failed(
            f"nothing is left to train: {folder.name} has made {start:,} of {facts.num_train_steps:,} steps",
            measured=measured,
            expected={"num_train_steps": f"more than {start}"},
            hint=Hint(text="train longer", commands=(command_line(facts, "train", *words),)),
        )
    problems = [*_other_order(folder), *_other_wandb_run(context, folder), *_lost_steps(folder, leftovers, start)]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return warned(
            f"{problems[0][0]}{more}",
            measured=measured,
            evidence=[what for what, _ in problems[1:]],
            hint=Hint(text="; ".join(mend for _, mend in problems)),
        )
    tracked = "" if _mode(context) == "disabled" else ", its wandb run"
    return passed(
        f"{folder.name} goes on at step {start:,} of {facts.num_train_steps:,}: checkpoint {newest} has "
        f"{' and '.join(ITEMS)}, the order of the data{tracked} and the record of its settings are kept",
        measured=measured,
    )


def _other_order(folder: Path) -> list[tuple[str, str]]:
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        why = "has no config.json, so it was not made by preflight (openpi makes none)"
    except (OSError, ValueError) as error:
        why = f"has a config.json that cannot be read ({type(error).__name__})"
    else:
        return []
    return [
        (
            f"{folder.name} {why}: the order of the data starts over, and whether the settings are the same is unknown",
            "some samples come twice and others not; to go on in the same order, resume with what began the run",
        )
    ]


def _other_wandb_run(context: CheckContext, folder: Path) -> list[tuple[str, str]]:
    if _mode(context) == "disabled":
        return []
    file = folder / "wandb_id.txt"
    try:
        if file.read_text(encoding="utf-8").strip():
            return []
        why = "is empty"
    except FileNotFoundError:
        why = "is missing"
    except (OSError, ValueError):
        why = "cannot be read"
    return [
        (
            f"{file} {why}: the metrics go to another wandb run from here on",
            f"write the id of the run so far, the last part of its address, into {file}",
        )
    ]


def _lost_steps(folder: Path, leftovers: list[str], start: int) -> list[tuple[str, str]]:
    if not leftovers:
        return []
    names = ", ".join(leftovers[:3]) + (f" and {len(leftovers) - 3} more" if len(leftovers) > 3 else "")
    return [
        (
            f"{folder.name} holds the remains of a save that did not finish: {names}; it goes on at step {start:,}",
            "nothing to do, unless the disk was full or the RAM too small: the remains are deleted at the start",
        )
    ]


def _mode(context: CheckContext) -> str:
    return choose_mode(context.run.facts.wandb_enabled, context.probes.environ).mode


CHECK = Check(
    id="storage.resume",
    title="A resumed run goes on as the same run",
    level="quick",
    severity="fail",
    requires=("storage.checkpoint-dir",),
    failures=("F42",),
    run=_resume,
    doc="Only before a training with --resume. The newest checkpoint must hold params and train_state with their "
    "metadata and all files of the list that is kept in it, each of its size, and steps must be left to make. Warned "
    "of: a folder without config.json, as openpi leaves it, in which neither the settings can be compared nor the "
    "order of the data continued; a missing wandb_id.txt while wandb is on, after which the metrics go to another run "
    "(openpi's own script stops there); and folders named STEP.orbax-checkpoint-tmp…, which a save that was cut short "
    "left behind. No array is read.",
)
