"""Near names for a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    message = f"unknown {kind} {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    return message, f"valid: {', '.join(names)}" if names else f"there is no {kind}"
