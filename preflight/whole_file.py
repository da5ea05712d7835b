"""A file that is there whole or not at all, whatever interrupts the process that writes it.

The content is written into a file without a name (O_TMPFILE), which the system frees when the process dies, and is then
linked to its place: a new file needs nothing else. A file that is there already is replaced by a rename, since a link
cannot replace; for the few microseconds between these two calls there is a hidden file beside it, and only a kill in
just that moment leaves it, until the next writing to the same place. File systems without nameless files (NFS) have the
hidden one for as long as the writing takes.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from preflight.errors import UsageError

_TRIES = 10


def require_writable(option: str, path: Path) -> None:
    """Tries whether a file could be written, before anything is measured for it; leaves no trace.

    Args:
        option: What the path was given for, for the message; like `--output`.
        path: The file; may exist.

    Raises:
        UsageError: It could not; says why.
    """
    refused = f"{option} {path} cannot be written: "
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise UsageError(f"{refused}it is a folder")
        if path.name in ("", ".", "..") or str(path).endswith("/"):
            raise UsageError(f"{refused}it names no file")
        if target.exists() and not os.access(target, os.W_OK):
            raise UsageError(f"{refused}Permission denied")
        if is_replaceable(target):
            _try_folder(target)
    except OSError as error:
        raise UsageError(f"{refused}{error.strerror or error}") from None
    except ValueError as error:  # a null character
        raise UsageError(f"{option} {str(path)!r} cannot be written: {error}") from None


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file in one step: readers see what was there before or all of the new.

    What is no regular file (a pipe, `/dev/stdout`) is written to as it is. A link is followed.

    Raises:
        OSError: It cannot be written; what was there before still is.
    """
    target = Path(os.path.realpath(path))
    if not is_replaceable(target):
        target.write_bytes(content)
        return
    descriptor = _open_nameless(target.parent)
    if descriptor is None:
        _write_named(target, content)
        return
    try:
        _write_all(descriptor, content)
        _put_in_place(descriptor, target)
    finally:
        os.close(descriptor)


def is_replaceable(target: Path) -> bool:
    """Whether it is a regular file, or will be one; a pipe or a device gets what is written to it, each time."""
    return not target.exists() or stat.S_ISREG(target.stat().st_mode)


def _neighbour(target: Path) -> Path:
    # One name for each target, so that a left-over is found again; a part of it, since names end at 255 bytes.
    return target.with_name(f".{target.name[:50]}.partial")


def _try_folder(target: Path) -> None:
    if len(os.fsencode(target.name)) > os.pathconf(target.parent, "PC_NAME_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    descriptor = _open_nameless(target.parent)
    if descriptor is None:
        neighbour = _neighbour(target)
        neighbour.open("wb").close()
        neighbour.unlink()
    else:
        os.close(descriptor)


def _open_nameless(folder: Path) -> int | None:
    """A file that has no name yet; None where the system has no such files."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None:
        return None
    try:
        return os.open(folder, flag | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise


def _put_in_place(descriptor: int, target: Path) -> None:
    neighbour = _neighbour(target)
    for attempt in range(_TRIES):
        try:
            if not target.exists():
                _link(descriptor, target)
                return
            neighbour.unlink(missing_ok=True)
            _link(descriptor, neighbour)
            neighbour.replace(target)
            return
        except (FileExistsError, FileNotFoundError):
            # Another process writes the same file: each of them writes all of it, and the last one stays.
            if attempt == _TRIES - 1:
                raise
        except BaseException:
            with suppress(OSError):
                neighbour.unlink()
            raise


def _link(descriptor: int, name: Path) -> None:
    # Given a folder's descriptor, Python calls linkat(2), which can follow the link that /proc shows an open file as.
    os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True)


def _write_named(target: Path, content: bytes) -> None:
    neighbour = _neighbour(target)
    try:
        neighbour.write_bytes(content)
        neighbour.replace(target)
    except BaseException:
        with suppress(OSError):
            neighbour.unlink()
        raise


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
