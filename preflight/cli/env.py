"""`preflight env`."""

from __future__ import annotations

import json

import typer


def env() -> None:
    """Print the machine and the versions as JSON, for a bug report; no names, no secrets."""
    from preflight.telemetry.environment import environment

    typer.echo(json.dumps(environment(), indent=2))
