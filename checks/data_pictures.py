"""The part of `data.videos` that looks at cameras whose pictures lie inside the parquet files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from checks.context import CheckContext
from preflight.checklist import Hint, Outcome, failed, passed, warned
from preflight.data.metadata import DatasetInfo

if TYPE_CHECKING:
    from preflight.data.episodes import Episodes
    from preflight.data.image_pass import SeenPictures

LISTED = 20  # lines of evidence


def look_at(
    context: CheckContext, info: DatasetInfo, episodes: Episodes, cameras: Sequence[str], *, limit_s: float
) -> SeenPictures:
    """Looks at the pictures of some cameras: at level full at all of them, else for so many seconds."""
    from preflight.data.image_pass import look_at_pictures

    full = context.level == "full"
    return look_at_pictures(
        info,
        episodes,
        cameras,
        threads=max(1, math.ceil(context.probes.cpus().count)),
        limit_s=limit_s,
        every_frame=full,
        progress=lambda done, total: context.progress("episodes' pictures looked at", done, total),
    )


def outcome_of(seen: SeenPictures) -> Outcome:
    """Where it is the pictures in parquet files alone that there is something to say about."""
    measured = {
        "pictures": seen.pictures,
        "picture_episodes": seen.of_episodes,  # over all cameras
        "picture_episodes_looked_at": seen.episodes,
    }
    if seen.faults:
        many = f"; {len(seen.faults):,} of the {seen.episodes:,} episodes looked at are wrong"
        return failed(
            seen.faults[0] + (many if len(seen.faults) > 1 else ""),
            measured=measured,
            evidence=evidence_of([*seen.faults, *seen.remarks]),
            hint=Hint(
                text="fetch the file again, drop the episode (lerobot-edit-dataset), drop the camera from the config, "
                "or correct its shape in meta/info.json where the pictures are right"
            ),
        )
    if seen.remarks:
        return warned(
            f"{seen.remarks[0]}; {seen.covered()}",
            measured=measured,
            evidence=evidence_of(seen.remarks),
            hint=Hint(text="correct the order of height and width in meta/info.json"),
        )
    return passed(f"no video is read; {seen.covered()}", measured=measured)


def evidence_of(lines: Sequence[str]) -> tuple[str, ...]:
    """The first of many lines, and how many more there are."""
    more = len(lines) - LISTED
    return (*lines[:LISTED], *((f"and {more:,} more",) if more > 0 else ()))
