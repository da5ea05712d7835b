"""Turns whatever a check measured into plain values and printable text, whatever is in it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from enum import Enum
from typing import Any

# None, bool, int, float, str, and lists and str-keyed dicts of these.
Plain = Any


def plain(value: Any) -> Plain:
    r"""A value that JSON can hold, made of dicts, lists, strings, numbers, booleans and None.

    - Arrays and array scalars (numpy, jax, torch: anything with `tolist`) become numbers and nested lists.
    - nan and the infinities become the strings "nan", "inf" and "-inf": JSON has no such numbers, and null would say
      "not measured" where something was measured and found broken.
    - A lone surrogate, as in a file name that is not UTF-8, becomes its escape (`\udcff`).
    - Dataclasses become dicts, enums their values, dates ISO 8601, time spans seconds, sets sorted lists; paths and
      everything else become their string.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return _plain_other(value)


def _plain_other(value: Any) -> Plain:
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if callable(getattr(value, "tolist", None)) and not isinstance(value, type):
        return plain(value.tolist())
    if isinstance(value, Iterable) and not hasattr(value, "__fspath__"):
        return [plain(item) for item in value]
    return plain(str(value))


def spell(value: Any) -> str:
    """A measured value as one reads it: six significant digits, lists with commas, dicts as `name = value`."""
    return _spell(plain(value), nested=False)


def _spell(value: Plain, *, nested: bool) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        text = ", ".join(f"{key} = {_spell(item, nested=True)}" for key, item in value.items())
        return f"{{{text}}}" if nested else text
    if isinstance(value, list):
        text = ", ".join(_spell(item, nested=True) for item in value)
        return f"[{text}]" if nested or not value else text
    return str(value)


def printable(text: str) -> str:
    """The text on one line, with everything a terminal would act on made visible.

    Results quote file names, prompts and error messages, which may hold escape sequences; they are shown, not obeyed.
    """
    return "".join(character if character.isprintable() else _visible(character) for character in text)


def _visible(character: str) -> str:
    if character in "\n\r\t" or character.isspace():
        return " "
    return character.encode("unicode_escape").decode("ascii")
