"""The subject of all checks, benchmarks and training: a run, whoever wrote its config."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from preflight.config.load import load_config
from preflight.errors import UsageError
from preflight.runs.protocol import Facts, MapDataset, Run, command_line
from preflight.suggest import unknown

STACKS = ("auto", "native")

__all__ = ["STACKS", "Facts", "MapDataset", "Run", "command_line", "load_run"]


def load_run(name: str, *, stack: str = "auto", assignments: Iterable[str] = (), on_demo: Any = None) -> Run:
    """Makes a run from a config's name or file.

    Args:
        name: A built-in config or the path of a TOML run file.
        stack: "native", or "auto" to choose by the config.
        assignments: `KEY=VALUE` overrides.
        on_demo: Called with (done, total) frames while the demo dataset is made on first use.

    Raises:
        UsageError: An unknown stack, config or key, or a value that no run can start with.
    """
    if stack not in STACKS:
        raise UsageError(*unknown("stack", stack, STACKS))
    from preflight.runs.native import NativeRun

    assignments = tuple(assignments)
    return NativeRun(load_config(name, assignments), reference=name, assignments=assignments, on_demo=on_demo)
