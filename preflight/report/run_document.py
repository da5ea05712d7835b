"""The one object that a run's report is made from, as page and as JSON; `run.schema.json` describes it."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

from preflight import __version__
from preflight.report.plain import plain
from preflight.report.run_criteria import judged_criteria
from preflight.report.run_curves import curve
from preflight.report.run_forecast import forecast_rows
from preflight.report.run_lines import Note
from preflight.report.run_over_time import over_time, start_list
from preflight.report.run_read import RunFiles
from preflight.report.run_redact import withhold
from preflight.report.run_series import number
from preflight.report.run_verdict import outdated, run_verdict
from preflight.report.run_view import checks_of, data_wait_share, known, pace, setting

SCHEMA_VERSION = 1
_CLOCKS = ("start_s", "compile_s", "step_s", "data_wait_s", "host_s", "checkpoint_s")
_STATUSES = ("pass", "warn", "fail", "skip", "error")
_MOST_TEXT = 20_000  # characters of one text; more is no message


def run_document(files: RunFiles, *, more_notes: tuple[Note, ...] = (), now: float | None = None) -> dict[str, Any]:
    """Everything about a run, as plain values; secrets are withheld.

    Args:
        files: As `read_run` found them.
        more_notes: Of what else could not be seen.
        now: When the report is made, Unix seconds.

    Returns:
        What `run.schema.json` describes.
    """
    notes = [*files.notes, *more_notes]
    if outdated(files):
        notes.append(Note("summary.json", "of an earlier start: the run went on after it was written"))
    clearance = files.clearance or {}
    made = datetime.datetime.now(datetime.UTC) if now is None else datetime.datetime.fromtimestamp(now, datetime.UTC)
    return _bounded(
        withhold(
            plain(
                {
                    "schema_version": SCHEMA_VERSION,
                    "preflight_version": __version__,
                    "made_at": f"{made:%Y-%m-%dT%H:%M:%SZ}",
                    "run": {
                        "name": files.folder.absolute().name,
                        "folder": str(files.folder.absolute()),
                        "config": _text(setting(files, "name")) or _text(clearance.get("config")),
                        "stack": _text(setting(files, "stack")) or _text(clearance.get("stack")),
                        "wandb_id": files.wandb_id,
                    },
                    "verdict": run_verdict(files),
                    "notes": [{"file": note.file, "text": note.text} for note in notes],
                    "figures": _figures(files),
                    "criteria": judged_criteria(files),
                    "forecast": forecast_rows(files),
                    "alerts": [_alert(found) for found in files.alerts],
                    "starts": start_list(files),
                    "metrics": {name: curve(series) for name, series in files.metrics.series.items()},
                    "over_time": over_time(files),
                    "camera_views": [{"step": s, "file": f"camera_views/{p.name}"} for s, p in files.pictures.items()],
                    "checkpoints": [{"step": step, "bytes": size} for step, size in files.checkpoints.items()],
                    "clearance": _clearance(files),
                    "settings": files.config or {},
                    "environment": _dict(clearance.get("environment")),
                    "hashes": _dict(clearance.get("hashes")),
                }
            )
        )
    )


def render_run_json(document: Mapping[str, Any]) -> str:
    """The document as indented JSON, pure ASCII, with a final newline."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def run_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `report --format json`."""
    from importlib.resources import files

    return json.loads(files("preflight.report").joinpath("run.schema.json").read_text(encoding="utf-8"))


def _figures(files: RunFiles) -> dict[str, Any]:
    """The final statistics, by the summary where there is one that holds, else by the metrics."""
    summary = {} if files.summary is None or outdated(files) else files.summary
    losses = files.metrics.of("loss")
    clocks = _dict(summary.get("clocks"))
    steps = len({*files.metrics.times.x}) and int(files.metrics.times.x[-1]) + 1
    return {
        "steps": steps or None,
        "seconds": known(number(summary.get("seconds"))),
        "steps_per_sec": known(number(summary.get("steps_per_sec"))) or pace(files),
        "samples_per_sec": known(number(summary.get("samples_per_sec"))),
        "goodput": known(number(summary.get("goodput"))),
        "data_wait_share": data_wait_share(files),
        "best_loss": min(losses.finite(), default=None),
        "last_loss": losses.y[-1] if losses.y else None,
        "clocks": {
            name: value for name in _CLOCKS if (value := known(number(clocks.get(name)))) is not None and value >= 0
        },
    }


def _alert(found: Mapping[str, Any]) -> dict[str, Any]:
    step = known(number(found.get("step")))
    window = found.get("window")
    ends = [known(number(end)) for end in window] if isinstance(window, list) else []
    severity = found.get("severity")
    return {
        "rule": found["rule"],
        "severity": severity if severity in ("note", "warn", "stop") else "warn",
        "step": None if step is None else int(step),
        "window": [int(end) for end in ends if end is not None] if len(ends) == 2 and None not in ends else None,
        "message": _text(found.get("message")) or "",
        "advice": _text(found.get("advice")),
        "measured": _dict(found.get("measured")),
    }


def _clearance(files: RunFiles) -> dict[str, Any] | None:
    if files.clearance is None:
        return None
    checks = [_check(found) for found in checks_of(files)]
    return {
        "verdict": _text(files.clearance.get("verdict")),
        "level": _text(files.clearance.get("level")),
        "target": _text(files.clearance.get("target")),
        "started_at": _text(files.clearance.get("started_at")),
        "preflight_version": _text(files.clearance.get("preflight_version")),
        "counts": {status: sum(check["status"] == status for check in checks) for status in _STATUSES},
        "checks": checks,
    }


def _check(found: Mapping[str, Any]) -> dict[str, Any]:
    hint = _dict(found.get("hint"))
    status = found.get("status")
    return {
        "id": found["id"],
        "title": _text(found.get("title")) or "",
        "status": status if status in _STATUSES else "error",
        "summary": _text(found.get("summary")) or "",
        "measured": _dict(found.get("measured")),
        "evidence": [line for line in _list(found.get("evidence")) if isinstance(line, str)],
        "hint": _text(hint.get("text")),
        "commands": [line for line in _list(hint.get("commands")) if isinstance(line, str)],
        "ignored": _text(found.get("ignored")),
    }


def _bounded(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _MOST_TEXT:
        return f"{value[:_MOST_TEXT]} … ({len(value) - _MOST_TEXT} more characters)"
    if isinstance(value, dict):
        return {_bounded(key): _bounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_bounded(item) for item in value]
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def utc(time: float | None) -> str | None:
    """A moment as ISO 8601 in UTC, to the minute; None where there is none."""
    if time is None or not math.isfinite(time):
        return None
    try:
        return f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return None
