"""What limits the number of workers besides RAM: shared memory for their batches, and file descriptors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from preflight.data.video import MAX_OPEN_VIDEOS
from preflight.telemetry.descriptors import descriptor_limit, open_descriptors
from preflight.telemetry.shared_memory import SharedMemory, shared_memory

MIB = float(1 << 20)

# Counted on Linux with torch 2.10 and 1 to 8 workers: the parent opens some for its queue and the worker server, and
# for each worker a pair of pipes; and one for each batch that has arrived, which may be all that a worker prefetches.
_PARENTS_OWN = 8
_PARENTS_PER_WORKER = 4
# Batches that the parent holds beside those that wait: the one in use and the one just taken.
HELD_BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """What there is, as the sweep began, and what a worker takes of it."""

    prefetch_factor: int
    batch_bytes: int | None = None  # None: no batch has been seen
    shared: SharedMemory | None = None  # None: the system does not tell
    descriptors: int | None = None  # that this process had open at the start
    descriptor_limit: int | None = None  # RLIMIT_NOFILE, of this process and of each worker; None: no limit
    worker_descriptors: int | None = None  # the most that one worker had open

    def shared_bytes(self, num_workers: int) -> int | None:
        """Shared memory that batches can take in all: every worker's prefetched ones and the parent's.

        A batch that is being made is one of those prefetched. With 2 workers and 1, 2 and 4 batches ahead, `df` of
        /dev/shm showed 3, 5 and 9 batches while one was held.
        """
        if self.batch_bytes is None or num_workers == 0:
            return None
        return (num_workers * self.prefetch_factor + HELD_BATCHES) * self.batch_bytes

    def parent_descriptors(self, num_workers: int) -> int | None:
        """Descriptors that this process can need."""
        if self.descriptors is None:
            return None
        if num_workers == 0:
            return self.descriptors
        return self.descriptors + _PARENTS_OWN + num_workers * (_PARENTS_PER_WORKER + self.prefetch_factor)

    def each_workers_descriptors(self) -> int | None:
        """Descriptors that a worker can need: those it had, and the videos that it may keep open later."""
        return None if self.worker_descriptors is None else self.worker_descriptors + MAX_OPEN_VIDEOS

    def refusal(self, num_workers: int) -> str | None:
        """Why so many workers cannot be had, naming the limit; None where nothing here keeps them from it."""
        shared, need = self.shared, self.shared_bytes(num_workers)
        if shared is not None and shared.total_bytes and need is not None and need > shared.free_bytes:
            return (
                f"their waiting batches can take {size_text(need)} of shared memory, "
                f"and {size_text(shared.free_bytes)} is free in {shared.folder}"
            )
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
        shared, files = self.shared, None
        by_shared = None
        if shared is not None and shared.total_bytes and self.batch_bytes:
            waiting = shared.free_bytes // self.batch_bytes - HELD_BATCHES
            by_shared = max(0, waiting // self.prefetch_factor)
        if self.descriptor_limit is not None and self.descriptors is not None:
            left = self.descriptor_limit - self.descriptors - _PARENTS_OWN
            files = max(0, left // (_PARENTS_PER_WORKER + self.prefetch_factor))
        return {"shared_memory": by_shared, "descriptors": files}

    def to_json(self) -> dict[str, Any]:
        """As ``memory.limits``."""
        shared = self.shared
        return {
            "batch_mib": None if self.batch_bytes is None else self.batch_bytes / MIB,
            "shared_memory_free_mib": None if shared is None else shared.free_bytes / MIB,
            "shared_memory_total_mib": None if shared is None else shared.total_bytes / MIB,
            "descriptors": self.descriptors,
            "descriptor_limit": self.descriptor_limit,
            "worker_descriptors": self.worker_descriptors,
        }


def limits_here(prefetch_factor: int, *, shared: Callable[[], SharedMemory | None] = shared_memory) -> WorkerLimits:
    """The limits of this process, before it has started workers."""
    return WorkerLimits(
        prefetch_factor=prefetch_factor,
        shared=shared(),
        descriptors=open_descriptors(),
        descriptor_limit=descriptor_limit(),
    )


def shared_memory_advice(need_bytes: int) -> str:
    """What to do where shared memory is too small, in a container and on a machine."""
    gib = max(1, -(-need_bytes // (1 << 30)))
    return (
        f"fewer workers, or a larger /dev/shm: docker run --shm-size {gib}g, or mount -o remount,size={gib}G /dev/shm"
    )


def size_text(size: float) -> str:
    """Bytes for people."""
    return f"{size / MIB / 1024:.1f} GiB" if size >= 1024 * MIB else f"{size / MIB:.0f} MiB"
