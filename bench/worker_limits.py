"""What limits the number of workers besides RAM: file descriptors. Their batches lie in RAM (preflight.data.slots)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from preflight.data.frames import MAX_OPEN_VIDEOS
from preflight.data.worker_pool import HELD_SLOTS
from preflight.telemetry.descriptors import descriptor_limit, open_descriptors

MIB = float(1 << 20)

# Counted on Linux: the parent opens some for what it shares with all workers, and for each a pipe and what tells of its
# end; and two for each slot of shared memory: those of the batches under way, and of those held.
_PARENTS_OWN = 8
_PARENTS_PER_WORKER = 3
_PARENTS_PER_SLOT = 2


@dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """What there is, as the sweep began, and what a worker takes of it."""

    prefetch_factor: int
    batch_bytes: int | None = None  # None: no batch has been seen
    descriptors: int | None = None  # that this process had open at the start
    descriptor_limit: int | None = None  # RLIMIT_NOFILE, of this process and of each worker; None: no limit
    worker_descriptors: int | None = None  # the most that one worker had open

    def parent_descriptors(self, num_workers: int) -> int | None:
        """Descriptors that this process can need."""
        if self.descriptors is None:
            return None
        if num_workers == 0:
            return self.descriptors
        return self.descriptors + _fixed() + num_workers * self._per_worker()

    def each_workers_descriptors(self) -> int | None:
        """Descriptors that a worker can need: those it had, and the videos that it may keep open later."""
        return None if self.worker_descriptors is None else self.worker_descriptors + MAX_OPEN_VIDEOS

    def refusal(self, num_workers: int) -> str | None:
        """Why so many workers cannot be had, naming the limit; None where nothing here keeps them from it."""
        files = self.parent_descriptors(num_workers)
        if self.descriptor_limit is not None and files is not None and files > self.descriptor_limit:
            return (
                f"the parent needs up to {files} file descriptors for their pipes and batches, "
                f"and may open {self.descriptor_limit} (ulimit -n)"
            )
        return None

    def workers_files_refusal(self) -> str | None:
        """Why one worker, however few there are, may run out of descriptors; None where it will not."""
        files = self.each_workers_descriptors()
        if self.descriptor_limit is None or files is None or files <= self.descriptor_limit:
            return None
        return (
            f"a worker has {self.worker_descriptors} files open and keeps up to {MAX_OPEN_VIDEOS} videos more, "
            f"and may open {self.descriptor_limit} (ulimit -n)"
        )

    def max_workers_by(self) -> dict[str, int | None]:
        """How many workers each limit allows; None where there is no such limit or it is not known."""
        files = None
        if self.descriptor_limit is not None and self.descriptors is not None:
            files = max(0, (self.descriptor_limit - self.descriptors - _fixed()) // self._per_worker())
        return {"descriptors": files}

    def _per_worker(self) -> int:
        return _PARENTS_PER_WORKER + _PARENTS_PER_SLOT * self.prefetch_factor

    def to_json(self) -> dict[str, Any]:
        """As ``memory.limits``."""
        return {
            "batch_mib": None if self.batch_bytes is None else self.batch_bytes / MIB,
            "descriptors": self.descriptors,
            "descriptor_limit": self.descriptor_limit,
            "worker_descriptors": self.worker_descriptors,
        }


def limits_here(prefetch_factor: int) -> WorkerLimits:
    """The limits of this process, before it has started workers."""
    return WorkerLimits(
        prefetch_factor=prefetch_factor, descriptors=open_descriptors(), descriptor_limit=descriptor_limit()
    )


def _fixed() -> int:
    return _PARENTS_OWN + _PARENTS_PER_SLOT * HELD_SLOTS


def size_text(size: float) -> str:
    """Bytes for people."""
    return f"{size / MIB / 1024:.1f} GiB" if size >= 1024 * MIB else f"{size / MIB:.0f} MiB"
