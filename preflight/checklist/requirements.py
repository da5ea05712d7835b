"""What must hold between the checks of one list: unique ids, requirements that exist, and no circles."""

from collections.abc import Iterable, Sequence
from typing import Any

from preflight.checklist.check import Check
from preflight.errors import UsageError


def index_by_id(checks: Iterable[Check[Any]]) -> dict[str, Check[Any]]:
    """The checks by id, in the order given.

    Raises:
        UsageError: Two checks share an id; the message names both by title and module.
    """
    by_id: dict[str, Check[Any]] = {}
    for check in checks:
        if (other := by_id.get(check.id)) is not None:
            raise UsageError(
                f"two checks are called {check.id}: {_provenance(other)} and {_provenance(check)}",
                hint="Rename one of them, or uninstall the plugin that brings it.",
            )
        by_id[check.id] = check
    return by_id


def validate_requirements(checks: Sequence[Check[Any]]) -> None:
    """Make sure that every requirement is among the checks and that they can be put in an order.

    Raises:
        UsageError: An id is unknown, or checks require each other in a circle.
    """
    from graphlib import CycleError, TopologicalSorter

    by_id = index_by_id(checks)
    for check in checks:
        for required in check.requires:
            if required not in by_id:
                raise missing_requirement(check, required)
    try:
        TopologicalSorter({check.id: check.requires for check in checks}).prepare()
    except CycleError as error:
        # CycleError lists predecessors first; turned round, each id requires the next.
        raise UsageError(f"checks require each other in a circle: {' -> '.join(reversed(error.args[1]))}") from None


def missing_requirement(check: Check[Any], required: str) -> UsageError:
    """The error for a check that requires an id nothing has."""
    return UsageError(f"{check.id} requires {required}, and no check in the list has that id")


def _provenance(check: Check[Any]) -> str:
    return f"{check.title!r} (from {getattr(check.run, '__module__', None) or 'an unknown module'})"
