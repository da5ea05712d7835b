"""`[tool.preflight.watch]`: rules switched off, or with other limits."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from preflight.config.watch_rules import RULES, Limit, Rule, Severity
from preflight.errors import UsageError
from preflight.suggest import unknown


@dataclasses.dataclass(frozen=True)
class WatchSettings:
    """The rules that are on, by id, with the limits that the project gave them."""

    rules: Mapping[str, Rule] = dataclasses.field(default_factory=lambda: dict(RULES))


def read_watch(where: str, table: Mapping[str, Any]) -> WatchSettings:
    """Reads `[tool.preflight.watch]`.

    Args:
        where: The file, for messages.
        table: By rule id, dotted or nested: false switches a rule off, true leaves it; a table changes its severity and
            its limits.

    Raises:
        UsageError: An unknown rule or limit, or a value that is none.
    """
    rules = dict(RULES)
    for id_, value in _by_rule(table).items():
        if id_ not in RULES:
            message, hint = unknown("rule", id_, RULES)
            raise UsageError(f"{where}: watch: {message}", hint)
        if value is False:
            del rules[id_]
        elif isinstance(value, Mapping):
            rules[id_] = _changed(f'{where}: watch."{id_}"', RULES[id_], value)
        elif value is not True:
            example = next(iter(RULES[id_].limits.items()), None)
            shown = f"{example[0]} = {example[1].value:g}" if example else 'severity = "warn"'
            raise UsageError(
                f'{where}: watch."{id_}" must be false, true or a table, not {value!r}',
                f'for example: "{id_}" = false, or "{id_}" = {{ {shown} }}',
            )
    return WatchSettings(rules)


def _by_rule(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"grad": {"max": False}}`, as TOML reads `grad.max = false`, and `{"grad.max": False}` mean the same."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        is_family = isinstance(value, Mapping) and any(id_.startswith(f"{name}.") for id_ in RULES)
        if is_family and name not in RULES:
            found |= _by_rule(value, f"{name}.")
        else:
            found[name] = value
    return found


def _changed(where: str, rule: Rule, values: Mapping[str, Any]) -> Rule:
    limits = dict(rule.limits)
    severity = rule.severity
    for key, value in values.items():
        if key == "severity":
            severity = _severity(where, value)
            continue
        if key not in limits:
            message, hint = unknown("key", key, ["severity", *limits])
            raise UsageError(f"{where}: {message}", hint)
        limits[key] = _limit(f"{where}: {key}", limits[key], value)
    if "low" in limits and not limits["low"].value < limits["high"].value:
        raise UsageError(
            f"{where}: low must be below high, but {limits['low'].value:g} is not below {limits['high'].value:g}"
        )
    return dataclasses.replace(rule, severity=severity, limits=limits)


def _severity(where: str, value: Any) -> Severity:
    valid = typing.get_args(Severity)
    if value in valid:
        return typing.cast("Severity", value)
    message, hint = unknown("severity", str(value), valid)
    raise UsageError(f"{where}: {message}", hint)


def _limit(where: str, limit: Limit, value: Any) -> Limit:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UsageError(
            f"{where} must be a number, not {value!r}", f"it is {limit.meaning}; {limit.value:g} by default"
        )
    if not limit.least < value <= limit.most:
        most = "" if math.isinf(limit.most) else f" and at most {limit.most:g}"
        raise UsageError(f"{where} must be above {limit.least:g}{most}, not {value:g}", f"it is {limit.meaning}")
    return dataclasses.replace(limit, value=float(value))
