"""The frame cache of a run: which of its cameras' frames are kept where, and what is still to be done for that."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from preflight.config.schema import DataConfig
from preflight.data.cameras import Cameras
from preflight.data.frame_identity import FrameIdentity
from preflight.data.frame_store import (
    PARTIAL,
    default_folder,
    open_stored,
    place_of,
    remove,
    replaced_by,
    stored_in,
)
from preflight.data.kept_frames import FRAME_BYTES, KeptFrames
from preflight.data.metadata import DatasetInfo
from preflight.errors import DataError, PreflightError
from preflight.telemetry.cpus import usable_cpus
from preflight.telemetry.memory import available_memory

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraCache:
    """One camera's cache on disk."""

    identity: FrameIdentity
    place: Path
    num_bytes: int  # when it is whole
    here_bytes: int  # of those that an interrupted build has left, to be gone on with
    state: Literal["ready", "absent", "stale", "damaged"]
    why: str = ""  # what is wrong with it

    @property
    def camera(self) -> str:
        """The dataset's key."""
        return self.identity.camera


class FrameCache:
    """The cache of a dataset, as its config asks for it.

    Args:
        config: With `cache` and `cache_dir`.
        cameras: Whose squares are taken from the cache once it is open.
        keys: The cameras that the run uses.
        info: The dataset.

    Attributes:
        kind: `DataConfig.cache`.
        folder: Where caches on disk lie.
        num_bytes: What all cameras' frames take.
    """

    def __init__(self, config: DataConfig, cameras: Cameras, keys: Sequence[str], info: DatasetInfo) -> None:
        self.kind = config.cache
        self.folder = (config.cache_dir.expanduser() if config.cache_dir else default_folder()).absolute()
        self._rules = config.on_bad_sample, config.max_skipped
        self._cameras, self._info = cameras, info
        self.keys = tuple(dict.fromkeys(keys))
        self.num_bytes = len(self.keys) * info.total_frames * FRAME_BYTES

    @property
    def is_open(self) -> bool:
        """Whether the samples of all cameras come from it."""
        return bool(self.keys) and all(map(self._cameras.is_kept, self.keys))

    def open(self) -> None:
        """Has samples taken from what is there; where a camera has none on disk, its frames are decoded.

        Raises:
            PreflightError: if the system gives no memory.
        """
        if self.kind == "memory":
            try:
                for key in self.keys:
                    self._cameras.keep(key, KeptFrames.in_memory(self._info.total_frames))
            except OSError as error:
                raise PreflightError(
                    f"the frame cache cannot have {_size(self.num_bytes)} of shared memory: {error.strerror}",
                    "Use data.cache=disk or data.cache=off.",
                ) from error
        elif self.kind == "disk":
            for key in self.keys:
                # What is missing, `prepare` makes, and `states` tells.
                with contextlib.suppress(DataError, OSError):
                    identity = self._cameras.identity(key)
                    self._cameras.keep(key, open_stored(self._place(identity), identity))

    def states(self) -> list[CameraCache]:
        """Looks at each camera's cache on disk, whatever the config asks for.

        Raises:
            DataError: if a file of the dataset is missing.
        """
        return [self._state(self._cameras.identity(key)) for key in self.keys]

    def prepare(self, say: Callable[[str], None], progress: Progress = lambda done, total: None) -> None:
        """Makes what the run's cache lacks before samples are read; does nothing where it is whole, or off.

        Args:
            say: Told what is made, where and how large it will be; and of what goes wrong with single frames.
            progress: Told how many frames are decoded, and of how many.

        Raises:
            DataError: if a frame does not decode and may not be skipped, or a file is missing.
            PreflightError: if there is no room for it, or it cannot be written.
        """
        if self.kind == "memory":
            require_memory(self.num_bytes)
        elif self.kind == "disk" and not self.is_open:
            self.build(say, progress)
            self.open()
            if not self.is_open:
                raise DataError(f"{self._info.root} has changed since its frames were decoded", "Start again.")

    def build(self, say: Callable[[str], None], progress: Progress = lambda done, total: None) -> None:
        """Makes what is missing on disk; see `prepare`."""
        states = self.states()
        lacking = [one for one in states if one.state != "ready"]
        if not lacking:
            return
        for one in lacking:
            if one.why:
                say(f"the frame cache of {one.camera} is {one.state} and is made anew: {one.why}")
        need, free = sum(one.num_bytes - one.here_bytes for one in lacking), free_bytes(self.folder)
        if need > free:
            raise no_room(need, free, self.folder)
        # Late: it starts worker processes, whose modules a look at a config shall not pay for.
        from preflight.data.frame_build import BuildRules, build_frames

        rules = BuildRules(
            num_workers=max(1, int(usable_cpus().count)), on_bad_sample=self._rules[0], max_skipped=self._rules[1]
        )
        frames = self._info.total_frames
        say(
            f"making the frame cache of {', '.join(one.camera for one in lacking)} in {self.folder}: {frames:,} frames "
            f"a camera, {_size(need)} ({_size(free)} free)"
        )
        done = 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            progress(done, frames * len(lacking))

        for one in lacking:
            build_frames(
                one.place, self._info.root, one.identity, self._cameras.without_kept(),
                rules=rules, say=say, progress=told,
            )  # fmt: skip
            for old in replaced_by(self.folder, self._info.root, one.identity):
                with contextlib.suppress(OSError):  # another process has removed it, or it is not ours
                    remove(old.folder)

    def delete(self) -> list[tuple[Path, int]]:
        """Removes all caches on disk of the run's cameras, of whatever state of the dataset they are.

        Returns:
            What was removed, with its bytes.

        Raises:
            OSError: if one cannot be removed.
        """
        removed = []
        for one in stored_in(self.folder):
            identity, root = one.description["identity"], one.description.get("dataset")
            if root == str(self._info.root.resolve()) and identity.get("camera") in self.keys:
                removed.append((one.folder, one.num_bytes))
                remove(one.folder)
        return removed

    def _place(self, identity: FrameIdentity) -> Path:
        return place_of(self.folder, self._info.root, identity)

    def _state(self, identity: FrameIdentity) -> CameraCache:
        place, size = self._place(identity), identity.frames * FRAME_BYTES
        partial = place.with_name(f".{place.name}{PARTIAL}")
        here = sum(one.num_bytes for one in stored_in(self.folder) if one.folder == partial)

        def found(state: Literal["ready", "absent", "stale", "damaged"], why: str = "") -> CameraCache:
            return CameraCache(
                identity=identity, place=place, num_bytes=size, here_bytes=min(here, size), state=state, why=why
            )

        try:
            open_stored(place, identity)
        except FileNotFoundError:
            old = replaced_by(self.folder, self._info.root, identity)
            return found("stale", identity.differs_in(old[0].description["identity"])) if old else found("absent")
        except DataError as error:
            return found("damaged", error.message)
        except OSError as error:
            return found("damaged", f"{place} cannot be read: {error.strerror or error}")
        return found("ready")


def free_bytes(folder: Path) -> int:
    """Bytes that are free where a folder is, or would be made."""
    there = next(one for one in (folder, *folder.parents) if os.path.exists(one))
    return shutil.disk_usage(there).free


def no_room(need: int, free: int, folder: Path) -> PreflightError:
    """There is not enough space for caches on disk."""
    return PreflightError(
        f"the frame cache would take {_size(need)}, and {_size(free)} are free in {folder}",
        "Name a folder on another disk with data.cache_dir, or use data.cache=memory or off.",
    )


def require_memory(need: int) -> None:
    """Refuses a cache in memory for which there is no memory.

    Raises:
        PreflightError: says how much there is, and what limits it.
    """
    memory = available_memory()
    if need > memory.available_bytes:
        raise PreflightError(
            f"the frame cache in memory would take {_size(need)}, and {_size(memory.available_bytes)} are available "
            f"({memory.source})",
            "Use data.cache=disk, or data.cache=off.",
        )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
