"""What a checkpoint keeps beside the state, so that a resumed run's record goes on as if it had not been stopped."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from preflight.errors import PreflightError

# Below the checkpoint's `assets`, where openpi looks for nothing but its own normalisation statistics.
NAME = "preflight.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """The record so far, apart from what stands in `metrics.jsonl`."""

    best_loss: float = math.nan  # of the logged intervals; NaN: none was logged or finite
    last_loss: float = math.nan
    first_step: int = 0  # of the interval that is not logged yet
    each: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # its steps' metrics by name; empty: none


def progress_asset(progress: Progress) -> dict[str, bytes]:
    """The file that keeps it, by its path below `assets`."""
    document = dataclasses.asdict(progress) | {
        "best_loss": str(progress.best_loss),
        "last_loss": str(progress.last_loss),
        # As text, which NaN and infinity have as well; Python's is exact.
        "each": {name: [str(float(value)) for value in values] for name, values in progress.each.items()},
    }
    return {NAME: (json.dumps(document) + "\n").encode()}


def read_progress(step_folder: Path, names: Collection[str] = ()) -> Progress:
    """What a checkpoint keeps of the record; nothing, where it is openpi's or of an older version.

    Args:
        step_folder: The checkpoint's.
        names: The metrics of a step; an interval that has others, of another version, begins anew.

    Raises:
        PreflightError: The file is damaged.
    """
    path = step_folder / "assets" / NAME
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        progress = Progress(
            best_loss=float(document["best_loss"]),
            last_loss=float(document["last_loss"]),
            first_step=int(document["first_step"]),
            each={str(name): [float(value) for value in values] for name, values in document["each"].items()},
        )
        lengths = {len(values) for values in progress.each.values()}
        if progress.each and lengths != {int(step_folder.name) + 1 - progress.first_step}:
            raise ValueError("the steps of the interval do not end with the checkpoint's")
    except FileNotFoundError:
        return Progress()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise PreflightError(
            f"{path} cannot be read ({type(error).__name__}): it keeps the metrics between the last record and the "
            "checkpoint",
            "copy the checkpoint again, or go on from an older one",
        ) from error
    return progress if progress.each.keys() == set(names) else dataclasses.replace(progress, first_step=0, each={})
