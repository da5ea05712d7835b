"""What a check is, and how a list of them is chosen, run and judged. No check lives here."""

from preflight.checklist.check import (
    LEVELS,
    SEVERITIES,
    STATUSES,
    Check,
    Hint,
    Level,
    Outcome,
    Result,
    Severity,
    Status,
    errored,
    failed,
    passed,
    skipped,
    warned,
)
from preflight.checklist.plugins import load_plugins
from preflight.checklist.runner import Observer, run_checks
from preflight.checklist.select import Selection, find_check, parse_ignores, select
from preflight.checklist.verdict import Verdict, verdict

__all__ = [
    "LEVELS",
    "SEVERITIES",
    "STATUSES",
    "Check",
    "Hint",
    "Level",
    "Observer",
    "Outcome",
    "Result",
    "Selection",
    "Severity",
    "Status",
    "Verdict",
    "errored",
    "failed",
    "find_check",
    "load_plugins",
    "parse_ignores",
    "passed",
    "run_checks",
    "select",
    "skipped",
    "verdict",
    "warned",
]
