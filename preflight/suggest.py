"""Near names for a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str], cutoff: float = 0.75) -> str | None:
    """Gives the valid name that was probably meant, if there is one.

    Args:
        name: The word the user wrote.
        valid: The names that exist.
        cutoff: How near it must be, from 0 to 1 (difflib's ratio).
    """
    import difflib  # for a mistake only: every start would wait for it

    return next(iter(difflib.get_close_matches(name, list(valid), n=1, cutoff=cutoff)), None)


def unknown(kind: str, name: str, valid: Iterable[str]) -> tuple[str, str]:
    """Says that a name is unknown.

    Args:
        kind: What the name should have been, e.g. "config" or "key".
        name: The word the user wrote.
        valid: The names that exist.

    Returns:
        The message, which suggests a name only when one is really near, and a hint that lists the valid names.
    """
    names = sorted(valid)
    near = nearest(name, names)
    message = f"unknown {kind} {name!r}" + (f"; did you mean {near!r}?" if near else "")
    return message, f"valid: {', '.join(names)}" if names else f"there is no {kind}"
