"""A folder that is there whole or not at all, whatever interrupts the process that writes it."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from preflight.errors import PreflightError


@contextlib.contextmanager
def folder_lock(target: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Waits until no other process writes ``target``, and keeps the others waiting.

    The lock is ``flock`` on a hidden file beside the target, which the system gives up when its holder dies, however it
    dies. The file is removed at the end.

    Args:
        target: The folder to be written; its parent is created.
        waiting: Called if another process holds the lock, before it is waited for.

    Yields:
        Whether the file system can lock. Where it cannot (some network mounts), nobody waits.

    Raises:
        PreflightError: The parent cannot be written.
    """
    lock = target.parent / f".{target.name}.lock"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock, waiting)
    except OSError as error:
        raise explain(error, target) from error
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            # Removed while it is still held: whoever waits on this file sees that it is gone and takes the next.
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(descriptor)


def _locked(lock: Path, waiting: Callable[[], None]) -> int | None:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        except FileNotFoundError:
            pass  # its last holder removed it while we waited
        except OSError as error:
            os.close(descriptor)
            lock.unlink(missing_ok=True)
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                return None
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def written_whole(target: Path, *, locked: bool) -> Iterator[Path]:
    """Gives a path beside ``target`` to write a folder at, and renames it to its place when the block ends well.

    When the block raises, what it wrote is removed. What earlier processes left behind because they were killed is
    removed too, if the lock says that they are gone.

    Args:
        target: Must not exist, or be an empty folder.
        locked: What ``folder_lock`` gave.

    Yields:
        A path that does not exist yet, on the same file system.

    Raises:
        PreflightError: The folder could not be made or moved.
    """
    prefix = f".{target.name}.partial-"
    if locked:
        for leftover in target.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)
    try:
        workshop = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise explain(error, target) from error
    try:
        # One level down: LeRobot insists on creating the folder of a dataset itself. The name is no dataset's.
        partial = workshop / "partial"
        yield partial
        try:
            partial.rename(target)
        except OSError as error:
            raise explain(error, target) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def explain(error: BaseException, target: Path) -> PreflightError:
    """Says in one sentence why ``target`` could not be written."""
    code, text = getattr(error, "errno", None), str(error)
    # LeRobot's encoder threads and pyarrow pass on the system's words, but not always its number.
    if code == errno.EFBIG or "File too large" in text:
        return PreflightError(
            f"{target} cannot be written: a file grew larger than is allowed here.", "ulimit -f shows the limit."
        )
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "quota exceeded" in text:
        return PreflightError(
            f"The disk filled up while {target} was written.",
            "Free some space, or choose a folder on another disk.",
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PreflightError(
            f"{target} cannot be written: {os.strerror(code)}.",
            "Choose a folder that you may write to.",
        )
    if code in (errno.ENOTDIR, errno.EEXIST):
        return PreflightError(f"{target} cannot be written: a part of the path is a file.", "Choose another folder.")
    return PreflightError(f"{target} could not be written: {text or type(error).__name__}.")
