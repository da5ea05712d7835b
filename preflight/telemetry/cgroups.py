"""Which control groups this process lives in: the folders that hold its limits, the innermost first."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

Controller = Literal["memory", "cpu"]


class ControlGroup(NamedTuple):
    """One level of the hierarchy that this process is in."""

    version: Literal[1, 2]
    path: str  # as seen below the mount, "/" for its root
    folder: Path


def own_groups(
    controller: Controller, *, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> list[ControlGroup]:
    """The control groups that can limit this process, from its own up to the root of the mount.

    A limit anywhere above binds too (a Kubernetes pod limits its containers, a systemd slice its units), so a caller
    takes the tightest of them. Version 2 is looked for at ``cgroup`` and, on hybrid machines, in ``cgroup/unified``.

    Args:
        controller: The version 1 hierarchy to follow; version 2 has only one.
        proc: Where procfs is mounted.
        cgroup: Where the control groups are mounted.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups: list[ControlGroup] = []
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and not controllers:
            mount = cgroup if (cgroup / "cgroup.controllers").exists() else cgroup / "unified"
            groups += _levels(2, mount, path)
        elif controller in controllers.split(","):
            # Joint controllers are mounted as "cpu,cpuacct", mostly with a link "cpu" beside it.
            mounts = (cgroup / controllers, cgroup / controller)
            groups += _levels(1, next((m for m in mounts if m.is_dir()), mounts[0]), path)
    return groups


def _levels(version: Literal[1, 2], mount: Path, path: str) -> list[ControlGroup]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    # Inside a container without a cgroup namespace the path is the host's, while the mount shows the container's own
    # group as its root: folders that do not exist are passed over, the root is always looked at.
    return [
        ControlGroup(version, "/" + "/".join(parts[:depth]), folder)
        for depth in range(len(parts), -1, -1)
        if (folder := mount.joinpath(*parts[:depth])).is_dir()
    ]
