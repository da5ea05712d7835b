"""The subject of all checks, benchmarks and training: a run, whoever wrote its config."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from preflight.config.builtin import BUILTIN_CONFIGS, DEFAULT_CONFIG
from preflight.config.load import is_file_name, load_config
from preflight.errors import UsageError
from preflight.runs.protocol import Facts, MapDataset, Run, command_line
from preflight.suggest import unknown

STACKS = ("auto", "native", "openpi")

__all__ = ["STACKS", "Facts", "MapDataset", "Run", "command_line", "load_run"]


def load_run(
    name: str,
    *,
    stack: str = "auto",
    assignments: Iterable[str] = (),
    on_demo: Any = None,
    checkout: Path | None = None,
) -> Run:
    """Makes a run from a config's name or file.

    Args:
        name: A built-in config, the path of a TOML run file, or a config that openpi knows.
        stack: "native" or "openpi"; "auto" takes openpi where it can be imported and knows the name, else native.
        assignments: `KEY=VALUE` overrides.
        on_demo: Called with (done, total) frames while the demo dataset is made on first use.
        checkout: The openpi checkout to import, in front of one that is installed.

    Raises:
        UsageError: An unknown stack, config or key, or a value that no run can start with.
    """
    if stack not in STACKS:
        raise UsageError(*unknown("stack", stack, STACKS))
    from preflight.runs.openpi import install

    assignments = tuple(assignments)
    options: tuple[str, ...] = ()
    if checkout is not None:
        install.use_checkout(checkout)
        options = ("--openpi", str(checkout))
    if stack == "openpi" or (stack == "auto" and _is_openpis(name)):
        from preflight.runs.openpi.run import load_openpi

        return load_openpi(name, assignments, options)
    from preflight.runs.native import NativeRun

    return NativeRun(load_config(name, assignments), reference=name, assignments=assignments, on_demo=on_demo)


def _is_openpis(name: str) -> bool:
    """Whether openpi is here and knows the name, which may be one of ours too: the user's own config is meant then."""
    from preflight.runs.openpi import install

    # A file is ours, and so is the demo; asking openpi takes ten seconds of imports.
    if is_file_name(name) or name == DEFAULT_CONFIG or not install.is_installed():
        return False
    from preflight.runs.openpi.run import config_names

    names = config_names()
    if name not in names and name not in BUILTIN_CONFIGS:
        message, hint = unknown("config", name, [*names, *BUILTIN_CONFIGS])
        raise UsageError(message, f"{hint}; or the path of a TOML run file")
    return name in names
