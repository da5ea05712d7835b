"""Checks from other distributions: the entry-point group `preflight.checks`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from preflight.checklist.check import Check
from preflight.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "preflight.checks"


def load_plugins(entry_points: "Iterable[EntryPoint] | None" = None) -> list[Check[Any]]:
    """Import the checks that installed distributions offer.

    Args:
        entry_points: What to load; by default all that are installed in the group `preflight.checks`. Each resolves to
            a `Check` or to a sequence of them.

    Returns:
        The checks, ordered by distribution and entry-point name.

    Raises:
        UsageError: One cannot be imported or is no check; the message names the distribution.
    """
    if entry_points is None:
        # importlib.metadata brings in the email package: 20 ms that a plain import of the checklist need not pay.
        from importlib.metadata import entry_points as installed

        entry_points = installed(group=GROUP)
    checks: list[Check[Any]] = []
    for entry_point in sorted(entry_points, key=lambda point: (_distribution(point), point.name)):
        checks += _load(entry_point)
    return checks


def _load(entry_point: "EntryPoint") -> list[Check[Any]]:
    distribution = _distribution(entry_point)
    where = f"the plugin {entry_point.name!r} ({entry_point.value}) of the distribution {distribution}"
    hint = f"Mend or uninstall it: pip uninstall {distribution}"
    try:
        loaded = entry_point.load()
    except (Exception, SystemExit) as error:
        raise UsageError(f"{where} cannot be loaded: {type(error).__name__}: {error}", hint) from error
    found = [loaded] if isinstance(loaded, Check) else loaded
    if not isinstance(found, list | tuple):
        raise UsageError(f"{where} is a {type(loaded).__name__}, not a Check or a sequence of them", hint)
    for item in found:
        if not isinstance(item, Check):
            raise UsageError(f"{where} holds a {type(item).__name__}, which is not a Check", hint)
    return list(found)


def _distribution(entry_point: "EntryPoint") -> str:
    return entry_point.dist.name if entry_point.dist is not None else "(unknown)"
