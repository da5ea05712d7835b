"""`preflight explain ID`."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer


def explain(id: Annotated[str, typer.Argument(metavar="ID", help="A check's id; see list-checks.")]) -> None:  # noqa: A002
    """Say what a check looks at, why, and how it gets its figures."""
    from preflight.checklist import find_check
    from preflight.cli.clearing import all_checks

    check = find_check(id, all_checks())
    typer.echo(f"{check.id}: {check.title}\n")
    typer.echo(textwrap.fill(check.doc, 100) + "\n")
    rows = {
        "level": f"{check.level}: run by `preflight check --level {check.level}` and above",
        "a miss is a": {"fail": "failure: the run is not cleared", "warn": "warning"}[check.severity],
        "requires": ", ".join(check.requires),
        "time-out": f"{check.timeout_s:g} s",
        "runs": "alone, because it measures" if check.exclusive else "beside others",
        "known failures": ", ".join(check.failures),
    }
    for name, value in rows.items():
        if value:
            typer.echo(f"{name:15} {value}")
