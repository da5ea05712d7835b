"""Run folders near a path that is none."""

from __future__ import annotations

import itertools
import shlex
from contextlib import suppress
from pathlib import Path

from preflight.errors import UsageError
from preflight.report.run_read import is_run_folder
from preflight.suggest import nearest

_SHOWN = 3
_MOST_LOOKED_AT = 2000


def require_run_folder(folder: Path) -> None:
    """Refuses a folder that no run was made in.

    Raises:
        UsageError: Says what it is instead; the hint names the nearest run folders.
    """
    if is_run_folder(folder):
        return
    try:
        found = folder.stat() if folder.exists() else None
        what = "does not exist" if found is None else "is no run folder"
        if found is not None and not folder.is_dir():
            what = "is a file; the report is made from a run's folder"
    except (OSError, ValueError) as error:
        what = f"cannot be looked at: {error}"
    near = _near(folder)
    commands = "; ".join(shlex.join(["preflight", "report", str(path)]) for path in near)
    raise UsageError(
        f"{folder} {what}",
        f"run folders near it: {commands}"
        if near
        else "a run folder is <checkpoint_base_dir>/<config>/<exp_name>, and holds config.json and metrics.jsonl",
    )


def _near(folder: Path) -> list[Path]:
    """Below it, above it, beside it, the most like it in name first and then the newest."""
    with suppress(OSError, ValueError):
        above = next((p for p in (folder, *folder.parents) if is_run_folder(p)), None)
        if above is not None:
            return [above]
    places = (
        (folder, ("*", "*/*", "*/*/*")),
        (folder.parent, ("*", "*/*")),
        (folder.parent.parent, ("*/*",)),
        (Path(), ("*/*/*",)),
    )
    for place, patterns in places:
        with suppress(OSError, ValueError):
            paths = itertools.chain.from_iterable(place.glob(pattern) for pattern in patterns)
            found = [p for p in itertools.islice(paths, _MOST_LOOKED_AT) if is_run_folder(p)]
            if found:
                found.sort(key=lambda p: -p.stat().st_mtime)
                like = nearest(folder.name, [p.name for p in found], cutoff=0.6)
                found.sort(key=lambda p: p.name != like)
                return found[:_SHOWN]
    return []
