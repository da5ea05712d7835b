"""Values from TOML and the command line into the config's own types."""

from __future__ import annotations

import collections.abc
import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from preflight.errors import UsageError
from preflight.suggest import unknown

T = TypeVar("T")


class RawText(str):
    """The right side of a `--set`, read by the type of the field it is for."""


def merge(config: T, values: Mapping[str, Any], *, where: str, base_dir: Path, prefix: str = "") -> T:
    """Returns the config with the given values replaced.

    Args:
        config: A dataclass instance; nested dataclasses are merged field by field.
        values: Nested mapping of field names to plain values.
        where: What the values came from, for messages: a file name or "--set".
        base_dir: What relative paths are relative to.
        prefix: Dotted path of `config` itself, for messages.

    Raises:
        UsageError: An unknown key, or a value that is not of the field's type.
    """
    hints = typing.get_type_hints(type(config))
    names = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if key not in names:
            message, hint = unknown("key", dotted, [f"{prefix}{name}" for name in names])
            raise UsageError(f"{where}: {message}", hint)
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            table = _toml_value(value) if isinstance(value, RawText) else value
            if not isinstance(table, Mapping):
                fields = ", ".join(f"{dotted}.{f.name}" for f in dataclasses.fields(current))
                raise UsageError(f"{where}: {dotted} is a table, not {table!r}", f"its keys: {fields}")
            changes[key] = merge(current, table, where=where, base_dir=base_dir, prefix=f"{dotted}.")
        elif isinstance(current, dict) and isinstance(value, Mapping) and where == "--set":
            # data.cameras.SLOT=KEY changes one slot; data.cameras={...} comes as text and replaces them all.
            changes[key] = {**current, **_convert(hints[key], dict(value), dotted, where, base_dir)}
        else:
            changes[key] = _convert(hints[key], value, dotted, where, base_dir)
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except (ValueError, TypeError, AssertionError) as error:  # a config of the user's own may refuse a value itself
        reason = str(error) or type(error).__name__
        raise UsageError(f"{where}: {', '.join(f'{prefix}{key}' for key in changes)}: {reason}") from error


def parse_assignments(assignments: typing.Iterable[str]) -> dict[str, Any]:
    """Turns `["data.norm=quantile", "batch_size=8"]` into a nested mapping.

    The right side stays text until the type of its field is known, see `merge`: text fields take it as it stands,
    others read it as a TOML value (`8`, `1e-4`, `[0, 5]`, `true`); `none` unsets.

    Raises:
        UsageError: No `=`, an empty key, or one key as both value and table.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise UsageError(f"--set {assignment!r} is not KEY=VALUE", "for example: --set batch_size=8")
        # A dataset key is itself dotted: everything behind data.cameras. is one key.
        if parts[:2] == ["data", "cameras"] and len(parts) > 3:
            parts = [*parts[:2], ".".join(parts[2:])]
        table = values
        for part in parts[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UsageError(f"--set {assignment!r}: {part!r} is given a value and keys at once")
        table[parts[-1]] = RawText(text.strip())
    return values


def _toml_value(text: str) -> Any:
    try:
        values = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return str(text)
    return values["value"] if len(values) == 1 else str(text)  # a line break could smuggle in a second key


def _convert(hint: Any, value: Any, key: str, where: str, base_dir: Path) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, RawText):
        if value.lower() in ("none", "null"):
            value = None
        elif _is_text(hint) and value[:1] not in ('"', "'"):
            value = str(value)
        else:
            value = _toml_value(value)
    if value is None:
        if type(None) in args:
            return None
        raise UsageError(f"{where}: {key} cannot be unset")
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        if len(inner) == 1:
            return _convert(inner[0], value, key, where, base_dir)
    if origin is Literal:
        if value in args:
            return value
        message, valid = unknown("value", str(value), [str(a) for a in args])
        raise UsageError(f"{where}: {key}: {message}", valid)
    if origin in (tuple, collections.abc.Sequence) and isinstance(value, list | tuple):
        return tuple(_convert(args[0], item, f"{key}[{i}]", where, base_dir) for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(k): _convert(args[1], v, f"{key}.{k}", where, base_dir) for k, v in value.items()}
    if hint is Path and isinstance(value, str) and value:
        try:
            return base_dir / Path(value).expanduser()
        except RuntimeError as error:
            raise UsageError(f"{where}: {key}: {error}") from None
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise UsageError(f"{where}: {key} must be {_describe(hint)}, not {value!r}")


def _is_text(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_is_text(inner) for inner in typing.get_args(hint))
    return hint in (str, Path) or typing.get_origin(hint) is Literal


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (tuple, collections.abc.Sequence):
        return f"a list, each item {_describe(args[0])}"
    if origin is dict:
        return "a table of text"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}.get(
        hint, "set in the config's own file, which holds more than a plain value here"
    )
