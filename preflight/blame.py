"""Whose line an error comes from, and what it says in one line."""

from __future__ import annotations

import inspect
import re
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OWN = tuple(Path(__file__).resolve().parent.parent / package for package in ("preflight", "checks", "bench"))
_STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
_INSTALLED = {"site-packages", "dist-packages"}

# What libraries say, and what it means for whoever wrote the step.
_PLAIN = (
    (
        re.compile(r"(Tracer|Array|ShapedArray).* has no attribute '?value\b"),
        "jax.tree.map over NNX states hands over arrays, and an array has no .value",
    ),
    (re.compile(r"unexpected keyword argument 'train'"), "compute_loss is called with the keyword argument train"),
)


def one_line(error: BaseException) -> str:
    """The error's type and the first line of its message: jax appends paragraphs."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    said = f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__
    meaning = next((words for pattern, words in _PLAIN if pattern.search(said)), None)
    return f"{said} ({meaning})" if meaning else said


def user_line(error: BaseException, *, or_ours: bool = True) -> str | None:
    """The innermost line of a traceback that is the user's: neither ours nor an installed library's.

    Args:
        error: As it was caught.
        or_ours: Whether the innermost of ours is given where there is none of the user's.
    """
    if isinstance(error, SyntaxError) and error.filename:  # raised by whoever imports the file
        return f"{error.filename}:{error.lineno}: {(error.text or '').strip()}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if or_ours and _is_own(Path(frame.filename))]
    users = [frame for frame in frames if _is_users(frame.filename)]
    chosen = (users or own)[-1:]
    return f"{chosen[0].filename}:{chosen[0].lineno}: {chosen[0].line}" if chosen else None


def definition(function: Callable[..., Any]) -> str | None:
    """Where a function is written, in the form of `user_line`; None where there is no source to show."""
    function = inspect.unwrap(function)
    try:
        lines, number = inspect.getsourcelines(function)
        return f"{inspect.getsourcefile(function)}:{number}: {lines[0].strip()}"
    except (OSError, TypeError):
        return None


def _is_own(path: Path) -> bool:
    return any(path.is_relative_to(package) for package in _OWN)


def _is_users(filename: str) -> bool:
    path = Path(filename)
    if filename.startswith("<") or _is_own(path) or path.is_relative_to(_STANDARD_LIBRARY):
        return False
    # openpi is meant to be changed by its users, wherever it is installed.
    return "openpi" in path.parts or not _INSTALLED & set(path.parts)
