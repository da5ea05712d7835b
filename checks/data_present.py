"""`data.present`: the dataset is where the config says."""

from __future__ import annotations

from checks.context import CheckContext
from preflight.checklist import Check, Outcome, passed
from preflight.data.metadata import read_info


def _present(context: CheckContext) -> Outcome:
    root = context.run.source()
    if root is None:
        return passed(f"no dataset is read: the run makes up its {len(context.run.dataset()):,} samples")
    info = read_info(root)
    return passed(
        f"LeRobot {info.codebase_version} at {root}",
        measured={"root": str(root), "codebase_version": info.codebase_version},
    )


CHECK = Check(
    id="data.present",
    title="The dataset is where the config says",
    level="quick",
    severity="fail",
    failures=("F15",),
    timeout_s=180,  # making the demo dataset on first use is part of it
    run=_present,
    doc="Looks for the dataset where the run's reader looks for it and reads its meta/info.json, without torch, LeRobot"
    " or the Hub. A dataset that is not there otherwise shows up as a Hub error (401, 404).",
)
