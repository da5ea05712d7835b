"""`data.timestamps`: every frame lies where its episode and the frame rate put it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.data.metadata import DatasetInfo, read_info

if TYPE_CHECKING:
    from collections.abc import Mapping

    from preflight.data.timestamps import Fault, FileReport

_LISTED = 10  # lines of evidence


def _timestamps(context: CheckContext) -> Outcome:
    from preflight.data.episodes import read_episodes
    from preflight.data.timestamps import TOLERANCE_S, check_timestamps, wrong_columns

    root = context.run.source()
    if root is None:
        return passed("samples are made up without a dataset: it has no timestamps")
    info = read_info(root)
    reports = check_timestamps(
        info,
        read_episodes(info),
        threads=max(1, math.ceil(context.probes.cpus().count)),
        progress=lambda done, total: context.progress("parquet files read", done, total),
    )
    faults = [fault for report in reports for fault in report.faults]
    measured: dict[str, Any] = {
        "files": len(reports),
        "episodes": info.total_episodes,
        "frames": sum(report.frames for report in reports),
        "furthest_from_grid_s": round(max(report.furthest_s for report in reports), 9),
    }
    if faults and _nothing_sought(context, info) and all(fault.column == "timestamp" for fault in faults):
        return _unused(info, faults, measured | {"wrong_frames": wrong_columns(faults)}, TOLERANCE_S)
    if faults and _nothing_sought(context, info):
        # A frame's number being wrong is what fails; its time is only mentioned.
        faults.sort(key=lambda fault: fault.column == "timestamp")
    if faults:
        return _failed(info, faults, measured | {"wrong_frames": wrong_columns(faults)}, TOLERANCE_S)
    if outcome := _rounded(context, info, reports, measured):
        return outcome
    return passed(
        f"{measured['frames']:,} timestamps in {len(reports)} file(s) lie on the grid of {info.fps:g} fps, "
        f"{measured['furthest_from_grid_s']:.1g} s off at most; frame_index, index and episode_index fit the "
        f"{info.total_episodes} episodes",
        measured=measured,
    )


def _nothing_sought(context: CheckContext, info: DatasetInfo) -> bool:
    """Whether no timestamp is ever used: LeRobot, which the native reader does without, compares them when it opens."""
    return context.run.facts.stack == "native" and not info.video_keys


def _unused(info: DatasetInfo, faults: list[Fault], measured: Mapping[str, Any], tolerance_s: float) -> Outcome:
    wrong = _failed(info, faults, measured, tolerance_s)
    return warned(
        f"{wrong.summary}; no camera's frame is sought by them here",
        measured=wrong.measured,
        expected=wrong.expected,
        evidence=wrong.evidence,
        hint=Hint(
            text="this run is not affected; LeRobot's own reader would refuse the dataset: rewrite the column as "
            "timestamp = frame_index / fps, where the frames were recorded at that rate"
        ),
    )


def _failed(info: DatasetInfo, faults: list[Fault], measured: Mapping[str, Any], tolerance_s: float) -> Outcome:
    first = faults[0]
    same = [fault for fault in faults if fault.column == first.column]
    count, episodes = sum(fault.frames for fault in same), sum(fault.episodes for fault in same)
    if first.column is None:
        summary = first.message + (f"; so it is with {len(same)} files" if len(same) > 1 else "")
    else:
        summary = f"{first.message}; in all {count:,} frame(s) of {episodes} of {info.total_episodes} episode(s)"
    if others := [name for name in measured["wrong_frames"] if name != first.column]:
        summary += f"; wrong as well: {', '.join(others)}"
    more = len(faults) - _LISTED
    return failed(
        summary,
        measured=measured,
        expected={"timestamp": "frame_index / fps", "fps": info.fps, "tolerance_s": tolerance_s},
        evidence=(
            *(f"{fault.message} ({fault.frames:,} frame(s))" for fault in faults[:_LISTED]),
            *((f"and {more} more",) if more > 0 else ()),
        ),
        hint=Hint(text=_HINTS.get(first.column, _HINT_NUMBERS)),
    )


def _rounded(
    context: CheckContext, info: DatasetInfo, reports: list[FileReport], measured: Mapping[str, Any]
) -> Outcome | None:
    """Sound timestamps of long episodes, which readers all the same take for wrong: the dtype's digits are used up."""
    frames = sum(report.rounded for report in reports) if info.video_keys else 0
    # LeRobot that reads v3.0 no longer compares neighbours.
    steps = 0 if "v3.0" in context.run.facts.formats else sum(report.rounded_steps for report in reports)
    if not (frames or steps):
        return None
    what, reader = (
        (f"{frames:,} timestamps lie", "videos are sought by them")
        if frames
        else (f"{steps:,} timestamps follow each other", "LeRobot before 0.4 refuses to open such a dataset")
    )
    return warned(
        f"{what} more than 1e-4 s off because float32 holds no nearer number so long into an episode; {reader}",
        measured={**measured, "rounded_frames": frames, "rounded_steps": steps},
        hint=Hint(
            text="open the dataset with a larger tolerance_s, e.g. LeRobot's tolerance_s=1e-3; or cut its episodes to "
            f"at most {34 if frames else 17} minutes"
        ),
    )


_HINTS = {
    None: "fetch these files again, or drop their episodes",
    "timestamp": "rewrite the column as timestamp = frame_index / fps, where the camera recorded at that rate; a "
    "larger tolerance_s makes LeRobot open the dataset as it is, and take the nearest frame of a video for the right "
    "one",
}
_HINT_NUMBERS = (
    "number the frames anew: frame_index from 0 in each episode, index from 0 through all episodes in their order, "
    "episode_index as in meta/episodes; LeRobot's own tools (lerobot-edit-dataset) do when they delete or merge"
)

CHECK = Check(
    id="data.timestamps",
    title="Every frame is where its episode puts it",
    level="standard",
    severity="fail",
    requires=("data.metadata",),
    failures=("F17",),
    timeout_s=900,
    run=_timestamps,
    doc="Reads timestamp, frame_index, index and episode_index of every parquet file. Each timestamp must be "
    "frame_index / fps within LeRobot's 1e-4 s and rise from 0, since cameras' frames are sought by it: LeRobot "
    "otherwise stops with `timestamps unexpectedly violate the tolerance`, when the dataset is opened or in the middle "
    "of an epoch. What float32 rounds off is granted. Counted numbers must be without gap or stranger. "
    "Where the dataset has no videos and LeRobot is not the reader, a wrong timestamp is a warning.",
)
