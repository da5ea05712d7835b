"""`data.metadata`: what the dataset says about itself is true, and all its files are there."""

from __future__ import annotations

from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.data.metadata import read_info
from preflight.errors import DataError

_REPAIR = "repair the metadata, or fetch the dataset again"
_UNREAD = "nothing that this run reads depends on it"


def _metadata(context: CheckContext) -> Outcome:
    from preflight.data.integrity import find_problems

    root = context.run.source()
    if root is None:
        return passed("samples are made up without a dataset: it has no metadata")
    info = read_info(root)
    lerobot_reads = context.run.facts.stack != "native"
    problems = find_problems(
        info,
        lerobot_reads=lerobot_reads,
        cameras=None if lerobot_reads else _cameras(context),
        progress=context.progress,
    )
    fatal = [problem for problem in problems if problem.fatal]
    measured = {
        "episodes": info.total_episodes,
        "frames": info.total_frames,
        "problems": len(fatal),
        "untidy": len(problems) - len(fatal),
        "missing_files": sum(problem.unusable for problem in problems),
    }
    if not problems:
        return passed(
            f"{info.total_episodes:,} episodes, {info.total_frames:,} frames, {len(info.camera_keys)} camera(s): the "
            "metadata agree with each other and with the files, and every file is there",
            measured=measured,
        )
    first, *others = problems
    more = f"; and {len(others)} more" if others else ""
    hint = next((problem.hint for problem in fatal if problem.hint), _REPAIR if fatal else _UNREAD)
    return (failed if fatal else warned)(
        f"{first.message}{more}",
        measured=measured,
        evidence=tuple(problem.message for problem in problems[:10]) if others else (),
        hint=Hint(text=first.hint or hint),
    )


def _cameras(context: CheckContext) -> tuple[str, ...] | None:
    """Those that the run uses, None where it cannot be told."""
    try:
        return context.run.cameras()
    except DataError:
        return None


CHECK = Check(
    id="data.metadata",
    title="The dataset is what it says it is",
    level="quick",
    severity="fail",
    requires=("data.present", "data.version"),
    failures=("F14", "F20", "F21"),
    timeout_s=180,
    run=_metadata,
    doc="Compares info.json, the lists of episodes and tasks, and the footer of every parquet file: episodes twice or "
    "missing, lengths that do not add up, rows of another episode, columns of another type or width. Looks for every "
    "parquet and video file that an episode names: missing, empty, a folder or a Git LFS pointer; a missing local file "
    "otherwise shows up as a Hub error (401, 404). And for files that no episode names: LeRobot's reader takes a stray "
    "parquet file for frames, without an error. Counts, splits and rates that nothing depends on are a warning, and so "
    "are, on the native stack, videos of cameras that the run does not use.",
)
