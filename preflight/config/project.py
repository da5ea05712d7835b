"""The project file: `preflight.toml`, or `[tool.preflight]` in pyproject.toml."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Any

from preflight.config.load import read_toml
from preflight.config.watch import WatchSettings, read_watch
from preflight.errors import UsageError
from preflight.suggest import unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Project:
    """What a project decided once for all of its runs."""

    path: Path | None = None  # the file it was read from
    config: str | None = None  # the config where the command line names none
    stack: str | None = None  # auto, native or openpi
    ignore: dict[str, str] = field(default_factory=dict)  # check id -> reason
    expect: dict[str, Any] = field(default_factory=dict)  # dotted config key -> the value it must have
    watch: WatchSettings = field(default_factory=WatchSettings)  # the rules that watch its runs


def find_project(start: Path) -> Project:
    """Reads the nearest project file at or above a folder; an empty project where there is none.

    Raises:
        UsageError: The file is broken or has an unknown key.
    """
    for folder in (start, *start.parents):
        own = folder / "preflight.toml"
        if own.is_file():
            return _parse(own, read_toml(own))
        shared = folder / "pyproject.toml"
        if shared.is_file():
            tools = read_toml(shared).get("tool", {})
            table = tools.get("preflight") if isinstance(tools, dict) else None
            if table is not None and not isinstance(table, dict):
                raise UsageError(f"{shared}: tool.preflight must be a table, not {table!r}")
            if table is not None:
                return _parse(shared, table)
    return Project()


def _parse(path: Path, table: dict[str, Any]) -> Project:
    kinds: dict[str, type] = {"config": str, "stack": str, "ignore": dict, "expect": dict, "watch": dict}
    for key, value in table.items():
        if key not in kinds:
            message, hint = unknown("key", key, kinds)
            raise UsageError(f"{path}: {message}", hint)
        if not isinstance(value, kinds[key]):
            raise UsageError(f"{path}: {key} must be {'a table' if kinds[key] is dict else 'text'}, not {value!r}")
    ignore = {str(k): str(v).strip() for k, v in _flatten(table.get("ignore", {})).items()}
    for check, reason in ignore.items():
        if not reason:
            raise UsageError(f"{path}: ignore of {check} gives no reason", f'for example: "{check}" = "known, see #12"')
    config = table.get("config")
    if config is not None and config.endswith(".toml"):
        config = str(path.parent / config)
    return Project(
        path=path,
        config=config,
        stack=table.get("stack"),
        ignore=ignore,
        expect=_flatten(table.get("expect", {})),
        watch=read_watch(str(path), table.get("watch", {})),
    )


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"data": {"norm": "zscore"}}` and `{"data.norm": "zscore"}` mean the same."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
