"""The one object that JSON, JUnit and the short output are made from (`check --format json`)."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from preflight.checklist.check import Result
from preflight.checklist.verdict import verdict
from preflight.report.plain import plain

SCHEMA_VERSION = 1


def to_document(
    results: Sequence[Result],
    *,
    config: str,
    stack: str,
    level: str,
    target: str | None,
    started_at: datetime,
    duration_s: float,
    environment: Mapping[str, Any],
    preflight_version: str,
) -> dict[str, Any]:
    """Everything about one run of the checklist, as plain values.

    `check.schema.json` describes it. How measured values become plain, nan among them, is said at `plain`.

    Args:
        results: In the order of the list.
        config: Name or path of the training config.
        stack: Name of the stack ("native", "openpi").
        level: The level asked for.
        target: The accelerator that memory was worked out for, or None for the one at hand.
        started_at: When the checklist began; with a time zone. Written in UTC, to the second.
        duration_s: Seconds from start to end; written to the millisecond, as all durations.
        environment: Versions, host and devices.
        preflight_version: The version of this package.

    Raises:
        ValueError: `started_at` has no time zone.
    """
    if started_at.tzinfo is None:
        raise ValueError("started_at has no time zone, and a report read elsewhere would get its time wrong")
    return {
        "schema_version": SCHEMA_VERSION,
        "preflight_version": preflight_version,
        "config": plain(config),
        "stack": stack,
        "level": level,
        "target": plain(target),
        "verdict": verdict(results),
        "started_at": started_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "duration_s": round(duration_s, 3),
        "environment": plain(environment),
        "checks": [_check(result) for result in results],
    }


def _check(result: Result) -> dict[str, Any]:
    check, outcome, hint = result.check, result.outcome, result.outcome.hint
    return {
        "id": check.id,
        "title": plain(check.title),
        "category": check.category,
        "status": outcome.status,
        "summary": plain(outcome.summary),
        "measured": plain(outcome.measured),
        "expected": plain(outcome.expected),
        "evidence": plain(outcome.evidence),
        "hint": None
        if hint is None
        else {"text": plain(hint.text), "commands": plain(hint.commands), "url": plain(hint.url)},
        "duration_s": round(result.duration_s, 3),
        "ignored": plain(result.ignored),
    }
