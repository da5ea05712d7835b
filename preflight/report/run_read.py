"""What a run left in its folder, read with patience: what is missing, damaged or cut short is named, and left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from preflight.report.run_lines import Found, Note, read_document, read_lines
from preflight.report.run_series import Metrics, Telemetry

_MARKS = ("config.json", "clearance.json", "metrics.jsonl", "telemetry.jsonl", "summary.json", "alerts.jsonl")
_MOST_ALERTS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFiles:
    """A run's folder as it was found."""

    folder: Path
    config: Found | None
    clearance: Found | None
    summary: Found | None
    summary_time: float | None  # when it was written, Unix seconds
    metrics: Metrics
    telemetry: Telemetry
    alerts: tuple[Found, ...]
    wandb_id: str | None
    wandb_offline: bool  # whether a start of it was kept offline
    checkpoints: Mapping[int, int]  # bytes by step
    pictures: Mapping[int, Path]  # by step
    notes: tuple[Note, ...]


def is_run_folder(folder: Path) -> bool:
    """Whether a run was here: one of its files, or a checkpoint by Orbax."""
    try:
        if not folder.is_dir():
            return False
        if any((folder / name).is_file() for name in _MARKS):
            return True
        return any(p.name.isdecimal() and (p / "params").exists() for p in folder.iterdir())
    except (OSError, ValueError):
        return False


def read_run(folder: Path) -> RunFiles:
    """Reads a run's folder; nothing that a file holds, or does not, stops it."""
    notes: list[Note] = []
    config = read_document(folder, "config.json", notes, "the run's settings are not known")
    clearance = read_document(folder, "clearance.json", notes, "the run was started without --after-checks")
    summary = read_document(
        folder, "summary.json", notes, "the run has not ended, was killed, or is of a version that wrote none"
    )
    metrics, telemetry, alerts = Metrics(), Telemetry(), _Alerts()
    read_lines(folder, "metrics.jsonl", metrics.add, notes, "no step was logged")
    if metrics.repeated:
        steps = ", ".join(f"{step:.0f}" for step in metrics.repeated[:5])
        notes.append(Note("metrics.jsonl", f"it goes back to step {steps}; of steps logged twice, the later counts"))
    read_lines(folder, "telemetry.jsonl", telemetry.add, notes, "the machine was not watched")
    read_lines(folder, "alerts.jsonl", alerts.add, notes, None)
    if alerts.beyond:
        notes.append(Note("alerts.jsonl", f"{alerts.beyond} more alerts than the {_MOST_ALERTS} that are kept here"))
    return RunFiles(
        folder=folder,
        config=config,
        clearance=clearance,
        summary=summary,
        summary_time=_modified(folder / "summary.json") if summary is not None else None,
        metrics=metrics,
        telemetry=telemetry,
        alerts=tuple(alerts.kept),
        wandb_id=_word(folder / "wandb_id.txt"),
        wandb_offline=next((folder / "wandb").glob("offline-run-*"), None) is not None,
        checkpoints=_checkpoints(folder, notes),
        pictures=_pictures(folder, notes),
        notes=tuple(notes),
    )


@dataclasses.dataclass
class _Alerts:
    kept: list[Found] = dataclasses.field(default_factory=list)
    beyond: int = 0

    def add(self, line: Found) -> bool:
        if not isinstance(line.get("rule"), str):
            return False
        if len(self.kept) < _MOST_ALERTS:
            self.kept.append(line)
        else:
            self.beyond += 1
        return True


def _checkpoints(folder: Path, notes: list[Note]) -> dict[int, int]:
    found: dict[int, int] = {}
    try:
        places = [p for p in folder.iterdir() if p.name.isdecimal() and p.name.isascii() and p.is_dir()]
    except OSError:
        return found
    for place in sorted(places, key=lambda p: int(p.name)):
        try:
            found[int(place.name)] = sum(p.lstat().st_size for p in place.rglob("*") if not p.is_dir())
        except OSError as error:
            notes.append(Note(place.name, f"the checkpoint cannot be looked at: {error.strerror or error}"))
    return found


def _pictures(folder: Path, notes: list[Note]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    try:
        for path in (folder / "camera_views").iterdir():
            digits = path.stem.removeprefix("step_")
            if path.suffix == ".png" and path.stem.startswith("step_") and digits.isascii() and digits.isdecimal():
                found[int(digits)] = path
    except FileNotFoundError:
        notes.append(Note("camera_views", "not there: no camera views were written"))
    except OSError as error:
        notes.append(Note("camera_views", f"cannot be read: {error.strerror or error}"))
    return dict(sorted(found.items()))


def _word(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()[:100] or None
    except OSError:
        return None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
