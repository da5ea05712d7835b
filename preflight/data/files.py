"""What can be wrong with a dataset's file before anybody looks at its content; JSON files read with that in mind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preflight.errors import DataError

# First bytes of the text file that Git LFS leaves in place of content that was not fetched
# (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
LFS_MAGIC = b"version https://git-lfs.github.com/spec/"

_LFS_HINT = "Fetch the content: run `git lfs pull` in the dataset's repository, or download the dataset again."
_DOWNLOAD_HINT = "The download is incomplete: fetch the dataset again."


def damage(path: Path) -> str | None:
    """Says why a file can hold no data, reading its first bytes only.

    Args:
        path: The file.

    Returns:
        "is missing", "is empty", "is a Git LFS pointer, …" and the like, to follow the file's name; None if sound.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS_MAGIC))
    except FileNotFoundError:
        return "is missing"
    except IsADirectoryError:
        return "is a folder, not a file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not head:
        return "is empty"
    if head == LFS_MAGIC:
        return "is a Git LFS pointer, not the content"
    return None


def require_file(path: Path) -> None:
    """Raises if a file is not there, empty, unreadable or a Git LFS pointer.

    Args:
        path: The file.

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    wrong = damage(path)
    if wrong is None:
        return
    if "LFS" in wrong:
        hint = _LFS_HINT
    elif "cannot be read" in wrong:
        hint = f"Make it readable: chmod u+r {path}"
    else:
        hint = _DOWNLOAD_HINT
    raise DataError(f"{path} {wrong}", hint)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.

    Returns:
        The parsed value.

    Raises:
        DataError: if the file is damaged or not JSON, naming line and column.
    """
    return _parse(_text(path), path, first_line=1)


def read_json_lines(path: Path) -> list[Any]:
    """Reads a file with one JSON value a line; blank lines are passed over.

    Args:
        path: The file.

    Returns:
        The parsed values.

    Raises:
        DataError: if the file is damaged or a line is not JSON, naming line and column.
    """
    lines = enumerate(_text(path).splitlines(), start=1)
    return [_parse(line, path, first_line=number) for number, line in lines if line.strip()]


def _text(path: Path) -> str:
    require_file(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})", _DOWNLOAD_HINT) from error


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{path}, line {line}, column {error.colno}: not valid JSON ({error.msg})",
            "Repair the file, or fetch the dataset again.",
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: JSON nested too deeply to be metadata") from error
