"""What can be wrong with a dataset's file before anybody looks at its content; JSON files read with that in mind."""

from __future__ import annotations

import functools
import json
import os
import re
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preflight.errors import DataError

# Above these a file is no metadata and is not read: the largest info.json and stats.json in use are some hundred KB, a
# line of episodes.jsonl with the statistics of many cameras some ten.
MAX_DOCUMENT_BYTES = 64 << 20
MAX_LINE_BYTES = 16 << 20
# A file may end in an empty line or two; one that consists of them would be read for minutes.
_MAX_BLANK_LINES = 1000

_SURROGATE = re.compile(r"\\u[dD][89abAB]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = 160
# A pointer's size limit in the specification named below; content that is larger need not be opened.
_LFS_MAX_BYTES = 1024

# First bytes of the text file that Git LFS leaves in place of content that was not fetched
# (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
LFS_MAGIC = b"version https://git-lfs.github.com/spec/"

_LFS_HINT = "Fetch the content: run `git lfs pull` in the dataset's repository, or download the dataset again."
_DOWNLOAD_HINT = "The download is incomplete: fetch the dataset again."


def damage(path: Path) -> str | None:
    """Says why a file can hold no data, reading the first bytes of a small one only.

    Links are followed, also out of the dataset's folder: in the Hub's cache every file is such a link.

    Args:
        path: The file.

    Returns:
        "is missing", "is empty", "is a Git LFS pointer, …" and the like, to follow the file's name; None if sound.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return "is a folder, not a file"
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for ever.
            return "is not a regular file"
        if not status.st_size:
            return "is empty"
        if status.st_size < _LFS_MAX_BYTES:
            with open(path, "rb") as file:
                if file.read(len(LFS_MAGIC)) == LFS_MAGIC:
                    return "is a Git LFS pointer, not the content"
        elif not os.access(path, os.R_OK):
            return "cannot be read (Permission denied)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
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
    elif "Permission" in wrong:
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
        DataError: if the file is damaged, larger than `MAX_DOCUMENT_BYTES` or not JSON (naming line and column), or
            gives a key twice.
    """
    require_file(path)
    with _opened(path) as file:
        content = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        size = max(path.stat().st_size, len(content))
        raise DataError(f"{path} has {size:,} bytes, and no metadata has more than {MAX_DOCUMENT_BYTES:,}")
    return _parse(_decoded(content, path, 0), path, first_line=1)


def read_json_lines(path: Path, *, max_lines: int | None = None) -> list[Any]:
    """Reads a file with one JSON value a line; blank lines are passed over.

    Args:
        path: The file.
        max_lines: As for `iterate_json_lines`.

    Returns:
        The parsed values.

    Raises:
        DataError: as for `iterate_json_lines`, or if the file is larger than `MAX_DOCUMENT_BYTES`.
    """
    require_file(path)
    if (size := path.stat().st_size) > MAX_DOCUMENT_BYTES:
        raise DataError(f"{path} has {size:,} bytes, more than the {MAX_DOCUMENT_BYTES:,} that are read at once")
    return list(iterate_json_lines(path, max_lines=max_lines))


def iterate_json_lines(path: Path, *, max_lines: int | None = None) -> Iterator[Any]:
    """Goes through a file with one JSON value a line, one line in memory at a time; blank lines are passed over.

    Args:
        path: The file.
        max_lines: How many values are believed; None for any number.

    Yields:
        The parsed values.

    Raises:
        DataError: if the file is damaged, a line is longer than `MAX_LINE_BYTES` or not JSON (naming line and column),
            or there are more than `max_lines`.
    """
    require_file(path)
    number = offset = values = 0
    with _opened(path) as file:
        # Bytes, as only "\n" ends a line of JSON lines: a text may hold what Python takes for other line ends.
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number} has more than {MAX_LINE_BYTES:,} bytes")
            if line.strip():
                values += 1
                if max_lines is not None and values > max_lines:
                    raise DataError(f"{path} has more than {max_lines} lines")
                yield _parse(_decoded(line.rstrip(b"\r\n"), path, offset), path, first_line=number)
            elif number - values > _MAX_BLANK_LINES:
                raise DataError(f"{path} has more than {_MAX_BLANK_LINES} blank lines")
            offset += len(line)


def shown(value: Any) -> str:
    """Writes a value from a file for a message: short, whatever its size and depth."""
    return _SHORT.repr(value)


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})", f"Make it readable: chmod u+r {path}") from error


def _decoded(content: bytes, path: Path, offset: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {offset + error.start})", _DOWNLOAD_HINT) from error


def _parse(text: str, path: Path, first_line: int) -> Any:
    where = f"{path}, line {first_line}" if first_line > 1 else str(path)
    try:
        value = json.loads(text, object_pairs_hook=functools.partial(_object, where))
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        hint = "Repair the file, or fetch the dataset again."
        if text.startswith("\ufeff"):
            hint = f"Remove the byte order mark: sed -i '1s/^\\xEF\\xBB\\xBF//' {path}"
        raise DataError(f"{path}, line {line}, column {error.colno}: not valid JSON ({error.msg})", hint) from error
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: a text has half of a surrogate pair, which is no character") from error
    except ValueError as error:  # Python converts no more than 4300 digits
        raise DataError(f"{where}: a number has too many digits") from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON nested too deeply to be metadata") from error
    return value


def _object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DataError(f"{where}: the key {shown(twice)} is given twice")
    return value
