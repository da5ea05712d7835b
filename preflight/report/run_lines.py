"""JSON from files that a killed process, a full disk or an editor may have damaged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_LONGEST_LINE = 1 << 20  # bytes; a line of metrics takes some 500, one of telemetry on eight GPUs 3000
_LARGEST_DOCUMENT = 64 << 20

Found = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Note:
    """Something that the report could not see, and why."""

    file: str
    text: str


def read_document(folder: Path, name: str, notes: list[Note], missing: str) -> Found | None:
    """A JSON object; where there is none, a note says why.

    Args:
        folder: The run's.
        name: The file's.
        notes: Added to.
        missing: What it means that the file is not there.
    """
    path = folder / name
    try:
        if path.stat().st_size > _LARGEST_DOCUMENT:
            notes.append(Note(name, f"not read: it has more than {_LARGEST_DOCUMENT >> 20} MiB"))
            return None
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        notes.append(Note(name, f"not there: {missing}"))
        return None
    except OSError as error:
        notes.append(Note(name, f"cannot be read: {error.strerror or error}"))
        return None
    except (ValueError, RecursionError) as error:
        notes.append(Note(name, f"damaged: no JSON ({error})"))
        return None
    if not isinstance(found, dict):
        notes.append(Note(name, "damaged: not a JSON object"))
        return None
    return found


def read_lines(folder: Path, name: str, take: Callable[[Found], bool], notes: list[Note], missing: str | None) -> None:
    """Hands each line's object on; notes those that are none.

    Args:
        folder: The run's.
        name: The file's.
        take: Called with each object; gives False where that is not what the file should hold.
        notes: Added to.
        missing: What it means that the file is not there; None where that needs no note.
    """
    damaged: list[int] = []
    count, taken, whole = 0, 0, True
    try:
        for line, whole in _raw_lines(folder / name):  # noqa: B007 - the last one's is used below
            count += 1
            try:
                found = json.loads(line)
                good = isinstance(found, dict) and take(found)
            except (ValueError, RecursionError):
                good = False
            taken += good
            if not good:
                damaged.append(count)
    except FileNotFoundError:
        if missing is not None:
            notes.append(Note(name, f"not there: {missing}"))
        return
    except OSError as error:
        notes.append(Note(name, f"cannot be read: {error.strerror or error}"))
        return
    if damaged == [count] and not whole:
        notes.append(Note(name, f"its last line, {count}, is cut short and left out"))
    elif damaged:
        lines = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        notes.append(Note(name, f"{len(damaged)} of {count} lines are damaged and left out: {lines}"))
    if not taken and not damaged and missing is not None:
        notes.append(Note(name, f"empty: {missing}"))


def _raw_lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Each line that is not blank, and whether it ends; nothing stands for one that is longer than any of ours."""
    with path.open("rb") as file:
        while line := file.readline(_LONGEST_LINE):
            whole = line.endswith(b"\n")
            if not whole and len(line) == _LONGEST_LINE:
                while (rest := file.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                line, whole = b"\0", True
            if line.strip():
                yield line, whole
