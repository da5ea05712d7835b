"""What a run comes to, and `summary.json`, which it leaves however it ends."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any, Literal

import jax

from preflight.training.clocks import Clock
from preflight.whole_file import write_whole

logger = logging.getLogger(__name__)

NAME = "summary.json"

Exit = Literal["completed", "interrupted", "stopped", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What this process made of a run; a run that was resumed has had others before it."""

    folder: Path
    exit: Exit
    reason: str | None  # what ended it, where it was not the last step
    steps: int  # made by this process
    clocks: dict[Clock, float]  # seconds, see `Clocks`; together they are the whole time
    compile_s: float  # of the step
    first_step_s: float  # after it was compiled
    steps_per_sec: float  # without the first step and without saves; NaN for a single step
    samples_per_sec: float  # likewise
    best_loss: float  # of the logged intervals; NaN where none was logged or finite
    last_loss: float
    checkpoints: tuple[int, ...]  # that are there at the end
    camera_views: tuple[Path, ...]
    device_peak_bytes: int | None  # of the fullest device, as its allocator counts; None where it does not
    report: Path | None = None  # the page, where it could be made
    wandb_mode: str
    wandb_sync: str | None  # the command that uploads what was kept offline

    @property
    def seconds(self) -> float:
        """From the start, checks not included."""
        return sum(self.clocks.values())

    @property
    def goodput(self) -> float:
        """The share of the time in which the device worked on steps."""
        return self.clocks["step"] / self.seconds if self.seconds else math.nan

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it."""
        return self.exit == "interrupted"


def write_summary(summary: Summary) -> None:
    """Writes `summary.json` into the run's folder, all of it or nothing; a disk that refuses is warned about."""
    try:
        write_whole(summary.folder / NAME, (json.dumps(_document(summary), indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        logger.warning("%s could not be written: %s", summary.folder / NAME, error.strerror or error)


def last_exit(folder: Path) -> str | None:
    """How the run of a folder ended the last time; None where that is not known, as after a kill."""
    try:
        return str(json.loads((folder / NAME).read_text(encoding="utf-8"))["exit"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _document(summary: Summary) -> dict[str, Any]:
    document = {
        "steps": summary.steps,
        "seconds": round(summary.seconds, 3),
        "clocks": {f"{name}_s": round(value, 3) for name, value in summary.clocks.items()},
        "goodput": summary.goodput,
        "first_step_s": summary.first_step_s,
        "steps_per_sec": summary.steps_per_sec,
        "samples_per_sec": summary.samples_per_sec,
        "best_loss": summary.best_loss,
        "last_loss": summary.last_loss,
        "checkpoints": list(summary.checkpoints),
        "device_peak_bytes": summary.device_peak_bytes,
        "exit": summary.exit,
        "reason": summary.reason,
    }
    # NaN is not JSON.
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in document.items()}


def device_peak_bytes() -> int | None:
    """The most memory that this process has held on one of its devices; None where that is not counted, as on a CPU."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((int(peak) for peak in peaks if peak is not None), default=None)
