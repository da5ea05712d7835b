"""A file system of a few MiB, which fills up as a disk does."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

_BLOCK = 4096


@contextlib.contextmanager
def small_disk(folder: Path, mib: int):
    """Mounts it at a new folder; where that is not permitted, the test is skipped."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done and done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, leave_bytes: int):
    """Leaves so many bytes free."""
    (folder / "fill").unlink(missing_ok=True)
    free = os.statvfs(folder).f_bavail * _BLOCK
    (folder / "fill").write_bytes(bytes(max(0, free - leave_bytes)))


def make_room(folder: Path):
    (folder / "fill").unlink()
