"""`data.metadata`: what the dataset says about itself is true, and all its files are there."""

from __future__ import annotations

from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed
from preflight.data.metadata import read_info


def _metadata(context: CheckContext) -> Outcome:
    from preflight.data.episodes import missing_files, read_episodes

    root = context.run.source()
    if root is None:
        return passed("samples are made up without a dataset: it has no metadata")
    info = read_info(root)
    episodes = read_episodes(info)
    missing = missing_files(info, episodes, info.camera_keys)
    measured = {"episodes": info.total_episodes, "frames": info.total_frames, "missing_files": len(missing)}
    if missing:
        return failed(
            f"{len(missing)} of the dataset's files are missing or empty, the first: {missing[0]}",
            measured=measured,
            evidence=tuple(str(path) for path in missing[:10]),
            hint=Hint(text="fetch the dataset again; where it lies in a Git checkout: git lfs pull"),
        )
    return passed(
        f"{info.total_episodes} episodes, {info.total_frames:,} frames, {len(info.camera_keys)} camera(s), every file "
        "is there",
        measured=measured,
    )


CHECK = Check(
    id="data.metadata",
    title="The dataset is what it says it is",
    level="quick",
    severity="fail",
    requires=("data.present", "data.version"),
    failures=("F14", "F21"),
    timeout_s=180,
    run=_metadata,
    doc="Reads the episode list and looks for every parquet and video file that it names: missing, empty, a folder or "
    "a Git LFS pointer. A missing local file otherwise shows up as a Hub error (401, 404).",
)
