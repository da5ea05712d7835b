"""Runs the checklist for `check` and for `train --after-checks`."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from preflight import __version__
from preflight.checklist import Check, Selection, load_plugins, parse_ignores, run_checks
from preflight.config.project import Project
from preflight.errors import UsageError

if TYPE_CHECKING:
    from checks.context import CheckContext
    from preflight.report.text import TextReport


def all_checks() -> list[Check[Any]]:
    """Ours and those of installed plugins, in order."""
    from checks import CHECKLIST

    return [*CHECKLIST, *load_plugins()]


def ignores_of(project: Project, options: list[str], checks: list[Check[Any]]) -> dict[str, str]:
    """The project file's ignores and the command line's; the latter win."""
    try:
        ignores = parse_ignores([f"{check}={reason}" for check, reason in project.ignore.items()], checks)
    except UsageError as error:
        raise UsageError(f"{project.path}: {error.message.replace('--ignore', 'ignore of')}", error.hint) from None
    return ignores | parse_ignores(options, checks)


def clear(
    context: CheckContext,
    selection: Selection,
    *,
    level: str,
    ignores: dict[str, str],
    report: TextReport | None,
) -> dict[str, Any]:
    """Runs the checks, shows them through the report as they come, and gives the document of `check --format json`."""
    from preflight.report.document import to_document
    from preflight.telemetry.environment import environment

    started_at, began = datetime.now(UTC), time.perf_counter()
    context = dataclasses.replace(context, level=level)
    if report is not None:
        context = dataclasses.replace(context, progress=report.progress)
    if any(check.level != "quick" for check in selection.checks):
        _import_heavy(context)
    results = run_checks(
        selection.checks,
        context,
        ignores=ignores,
        left_out=selection.left_out,
        observers=() if report is None else (report,),
    )
    duration_s = time.perf_counter() - began
    if report is not None:
        report.finish(duration_s=duration_s)
    facts = context.run.facts
    return to_document(
        results,
        config=facts.name,
        stack=facts.stack,
        level=level,
        target=None if context.target is None else context.target.text,
        started_at=started_at,
        duration_s=duration_s,
        environment=environment(),
        preflight_version=__version__,
    )


def heading(context: CheckContext, level: str) -> str:
    """The checklist's first line."""
    facts = context.run.facts
    target = f", judged for {context.target.text}" if context.target else ""
    return f"Checklist for {facts.name} ({facts.stack} stack, level {level}{target})"


def _import_heavy(context: CheckContext) -> None:
    """Imports jax here, once: its modules import each other in circles, which two threads at a time do not survive."""
    from preflight.data.loader import start_worker_server

    # The server that workers are forked from imports meanwhile what samples are made with.
    if context.run.facts.num_workers:
        start_worker_server(context.run.facts.worker_modules)
    import preflight.training.step  # noqa: F401
