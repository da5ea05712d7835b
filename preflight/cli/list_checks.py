"""`preflight list-checks`."""

from __future__ import annotations

import typer


def list_checks() -> None:
    """List every check: its id, level, the severity of a miss, and what it makes sure of."""
    from preflight.cli.clearing import all_checks

    checks = all_checks()
    width = max(len(check.id) for check in checks)
    for check in checks:
        typer.echo(f"{check.id:{width}}  {check.level:8}  {check.severity:4}  {check.title}")
