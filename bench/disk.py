"""Where a dataset's bytes come from: its file system, and what processes really read from storage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Names as in /proc/filesystems of those whose files lie on another machine (or, 9p and the like, on a virtual
# machine's host), where every read that the page cache cannot answer is a message.
# fmt: off
_NETWORK = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "drvfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "wekafs",
})
# fmt: on
# sshfs, s3fs, gcsfuse, rclone, JuiceFS: a file system in a process is mostly a network's, but for these.
_LOCAL_FUSE = frozenset({"mergerfs", "overlayfs", "fuse-overlayfs", "squashfuse", "squashfuse_ll", "lxcfs", "ntfs-3g"})


@dataclass(frozen=True)
class Mount:
    """The file system that a path lies on."""

    kind: str  # "ext4", "nfs4", "fuse.sshfs"
    source: str  # "/dev/nvme0n1p2", "server:/export"
    folder: str  # where it is mounted

    @property
    def is_network(self) -> bool:
        """Whether its files lie on another machine."""
        if self.kind == "fuse":
            return True
        if self.kind.startswith("fuse."):
            return self.kind.removeprefix("fuse.") not in _LOCAL_FUSE
        return self.kind in _NETWORK

    def __str__(self) -> str:
        return f"{self.source} ({self.kind})"


def mount_of(path: Path, *, proc: Path = Path("/proc")) -> Mount | None:
    """The file system below a path, links followed.

    Args:
        path: It need not exist.
        proc: Where procfs is mounted.

    Returns:
        None where there is no procfs.
    """
    try:
        lines = (proc / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    best: Mount | None = None
    for line in lines:
        # proc_pid_mountinfo(5): id, parent, device, root, folder, options, optional fields, "-", type, source, options.
        before, _, after = line.partition(" - ")
        words, kinds = before.split(" "), after.split(" ")
        if len(words) < 5 or len(kinds) < 2:
            continue
        folder = _unescaped(words[4])
        # Of two at the same place the later one lies on top.
        if os.path.commonpath([folder, real]) == folder and (best is None or len(folder) >= len(best.folder)):
            best = Mount(kinds[0], _unescaped(kinds[1]), folder)
    return best


def mount_of_files(files: Sequence[Path], *, proc: Path = Path("/proc")) -> Mount | None:
    """The file system of some files, a network's before others where they lie on several."""
    picked = files[:: max(1, len(files) // 20)]
    mounts = [mount for path in picked if (mount := mount_of(path, proc=proc))]
    return next((mount for mount in mounts if mount.is_network), mounts[0] if mounts else None)


def read_bytes(pids: Iterable[int], *, proc: Path = Path("/proc")) -> int | None:
    """Bytes that processes have read from block devices since they started; what the page cache had is not counted.

    A network file system's bytes are mostly not counted either.

    Returns:
        None where one may not be looked at, or the kernel does not count.
    """
    total = 0
    for pid in pids:
        try:
            lines = (proc / str(pid) / "io").read_text().splitlines()
        except OSError:
            return None
        counts = dict(line.split(": ", 1) for line in lines if ": " in line)
        if "read_bytes" not in counts:
            return None
        total += int(counts["read_bytes"])
    return total


def _unescaped(text: str) -> str:
    for code in ("\\040", "\\011", "\\012", "\\134"):
        text = text.replace(code, chr(int(code[1:], 8)))
    return text
