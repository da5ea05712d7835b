"""Whether a checkpoint's parameters fit a model, by their shapes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from preflight.models.settings import is_adapter, settings_behind, settings_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """How the leaves of a checkpoint fit a model; leaves are named by path."""

    fitting: tuple[str, ...]  # in both, of one shape
    missing: tuple[str, ...]  # adapters that the checkpoint lacks; they are initialised
    extra: tuple[str, ...]  # in the checkpoint alone; they are not loaded
    problems: tuple[str, ...]  # why it cannot be loaded, a leaf and the likely setting each; empty: it can be
    settings: dict[str, Any]  # what the model's settings would have to be, by dotted key; None: not known

    @property
    def hint(self) -> str:
        """The overrides that make the model the checkpoint's; empty where they are not known."""
        known = {key: value for key, value in self.settings.items() if value is not None}
        words = " ".join(f"--set {_assignment(key, value)}" for key, value in known.items())
        return f"the checkpoint's model is that of {words}" if words else ""


def fit_of(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Fit:
    """Compares a checkpoint with a model.

    Args:
        found: The checkpoint's leaves by path; anything with a `shape`.
        wanted: The model's.
    """
    theirs = {name: tuple(leaf.shape) for name, leaf in found.items()}
    ours = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    differing = _differing(theirs, ours)
    problems: list[str] = []
    settings: dict[str, Any] = {}
    for name in sorted(ours, key=lambda name: (name.count("/"), name)):  # telling names first
        if theirs.get(name) == ours[name] or (name not in theirs and is_adapter(name)):
            continue
        likely = {f"model.{field}": differing[field] for field in settings_behind(name) if field in differing}
        settings |= likely
        reasons = [_assignment(key, value) for key, value in likely.items()]
        if is_adapter(name) and not reasons:
            reasons = [f"its rank is not that of model.{settings_behind(name)[0]}"]
        have = f"{list(theirs[name])} in the checkpoint" if name in theirs else "missing in the checkpoint"
        reason = f": {', '.join(reasons)}" if reasons else ""
        problems.append(f"{name} {have}, {list(ours[name])} in the model{reason}")
    return Fit(
        fitting=tuple(name for name, shape in ours.items() if theirs.get(name) == shape),
        missing=tuple(name for name in ours if name not in theirs and is_adapter(name)),
        extra=tuple(sorted(theirs.keys() - ours.keys())),
        problems=tuple(problems),
        settings=settings,
    )


def extra_report(fit: Fit) -> str:
    """A sentence on the leaves of the checkpoint that are not loaded."""
    named = ", ".join(fit.extra[:3]) + (f" and {len(fit.extra) - 3} more" if len(fit.extra) > 3 else "")
    what = f"the model has no place for {len(fit.extra)} leaves of the checkpoint, which are not loaded: {named}"
    fields = {field for name in fit.extra if is_adapter(name) for field in settings_behind(name)}
    if not fields:
        return what
    variants = " and ".join(f"model.{field}" for field in sorted(fields, reverse=True))
    return f"{what}; adapters have a place with a _lora variant in {variants}"


def _differing(theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    mine = settings_of(ours)
    differing = {field: value for field, value in settings_of(theirs).items() if value != mine.get(field)}
    # What has adapters is to keep them.
    for field in {field for name in ours if is_adapter(name) for field in settings_behind(name)} & differing.keys():
        differing[field] = differing[field] and f"{differing[field]}_lora"
    return differing


def _assignment(key: str, value: Any) -> str:
    if value is None:
        return f"{key} (none of preflight's has these sizes)"
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
