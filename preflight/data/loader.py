"""Batches for training, from worker processes that start by a fork of a server with everything imported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np

from preflight.data.batch_reading import OnBadSample, ReadBatch, ReadingRules, SampleFailure, Skipped, read_batch
from preflight.data.batch_seeds import own_random_state, seed_batch
from preflight.data.collate import unpack
from preflight.data.sampler import order_of
from preflight.data.worker_fork import StartMethod, fork_hazard
from preflight.data.worker_pool import WorkerPool
from preflight.data.worker_server import start_worker_server
from preflight.data.worker_stacks import WorkerStack
from preflight.errors import DataError, UsageError

__all__ = ["BatchLoader", "start_worker_server"]

logger = logging.getLogger(__name__)


class BatchLoader:
    """An endless iterator of shuffled batches from any picklable map-style dataset.

    Batch k holds the samples `order(k)`, whatever the number of workers, and random numbers that the dataset draws from
    the global generators are a function of `seed` and k alone. A dataset with `__getitems__(indices)`, torch's
    convention, is asked for a batch's samples together.

    A batch is nested like a sample (a dict of dicts of arrays, or an array), each array with the leading axis b. An
    array that is the same object in all samples is stored once and read-only in the batch. The arrays are views of
    shared memory that is used for another batch when the last of them is gone; whoever refers to one, as a jax array on
    the CPU may, keeps it. A forked process that reads on in a batch must copy it.

    That memory counts as RAM: `num_workers * prefetch_factor` batches that are ready or being read, and up to 8 that
    are held. Further ones that are held, and all where the system has no memfd, have arrays of their own and are copied
    through a pipe.

    Args:
        dataset: With `__len__` and `__getitem__`, which gives nested dicts of numpy arrays, of what numpy makes arrays
            of (torch tensors), or scalars; or an array.
        batch_size: Samples in a batch.
        num_workers: Processes; 0 loads in this one.
        seed: Of the shuffle, and of the dataset's random numbers.
        start_batch: Number of the first batch, to resume.
        prefetch_factor: Batches that each worker keeps ready.
        timeout_s: How long to wait for a batch, in seconds; the error then says where each worker is.
        order: Gives the indices of batch k; the dataset's own (`preflight.data.sampler.order_of`) where it is None.
        max_worker_restarts: How many dying workers are replaced, over the loader's life; what one had not finished is
            done again, so that no batch is lost, repeated or late in the order.
        on_bad_sample: What a DataError of the dataset does: "raise" ends the loading, "skip" takes the next good sample
            (index + 1, after the last one the first), with a warning that names the bad one.
        max_skipped: How many different samples may be skipped, by this loader; a resumed run counts anew.
        warn: Told of restarted workers, skipped samples and batches that do not go through shared memory.
        start_method: "forkserver" starts workers as forks of a server that holds nothing but imports, and sends them
            the dataset; "fork" as forks of this process, which takes any dataset. It is refused where it is not safe:
            once JAX, CUDA or a thread has started.

    Raises:
        UsageError: if the dataset has no full batch, an argument is impossible, or the dataset cannot be pickled.
        PreflightError: if the workers cannot be started.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        num_workers: int,
        seed: int = 0,
        start_batch: int = 0,
        prefetch_factor: int = 2,
        timeout_s: float = 120.0,
        order: Callable[[int], np.ndarray] | None = None,
        max_worker_restarts: int = 0,
        on_bad_sample: OnBadSample = "raise",
        max_skipped: int = 100,
        warn: Callable[[str], None] = logger.warning,
        start_method: StartMethod = "forkserver",
    ) -> None:
        for name, value, least in (
            ("num_workers", num_workers, 0),
            ("start_batch", start_batch, 0),
            ("prefetch_factor", prefetch_factor, 1),
            ("max_worker_restarts", max_worker_restarts, 0),
            ("max_skipped", max_skipped, 0),
        ):
            if value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}")
        if on_bad_sample not in ("raise", "skip"):
            raise UsageError(f"on_bad_sample must be raise or skip, got {on_bad_sample}")
        _require_start(start_method, num_workers)
        self._closed = False
        self._dataset = dataset
        self._seed = seed
        self._warn = warn
        self._batch = start_batch  # in this process; with workers, the pool counts
        self._rules = ReadingRules(on_bad_sample, max_skipped)
        self._skipped: set[int] = set()
        self._order = order or order_of(dataset, batch_size, seed)
        self._order(start_batch)  # refuses what would be refused later
        self._pool = None
        if num_workers:
            self._pool = WorkerPool(
                dataset,
                num_workers=num_workers,
                order=self._order,
                start_batch=start_batch,
                prefetch_factor=prefetch_factor,
                rules=self._rules,
                seed=seed,
                timeout_s=timeout_s,
                max_restarts=max_worker_restarts,
                warn=warn,
                start_method=start_method,
            )

    @property
    def skipped(self) -> int:
        """How many samples have been skipped so far; one that comes again in a later epoch counts once."""
        return len(self._skipped)

    def worker_pids(self) -> tuple[int, ...]:
        """Gives the workers' process ids; none with 0 workers or after `close`."""
        return () if self._pool is None else self._pool.pids

    def worker_stacks(self) -> list[WorkerStack]:
        """Tells where the workers are in their code, whatever they are stuck in; may be asked from another thread.

        Takes a second for each of the first three that do not answer.
        """
        return [] if self._pool is None else self._pool.where()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """Waits for the next batch.

        Returns:
            The batch.

        Raises:
            DataError: if a sample could not be read, naming it, or too many were skipped.
            PreflightError: if a worker died and may not be restarted, or no batch came in time.
            RuntimeError: if the loader is closed.
        """
        if self._closed:
            raise RuntimeError("this BatchLoader is closed")
        result = self._read() if self._pool is None else self._pool.receive()
        if isinstance(result, SampleFailure):
            error = DataError(result.message, result.hint)
            error.add_note(result.details)
            raise error
        for one in result.skipped:
            self._count(one)
        return unpack(result.leaves, result.block)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers, whatever they are doing; batches already given out stay valid."""
        self._closed = True
        if self._pool is not None:
            self._pool.close()

    def _read(self) -> ReadBatch | SampleFailure:
        number, self._batch = self._batch, self._batch + 1
        indices = self._order(number)
        with own_random_state():
            seed_batch(self._seed, number)
            return read_batch(self._dataset, indices, lambda size: np.empty(size, dtype=np.uint8), rules=self._rules)

    def _count(self, skipped: Skipped) -> None:
        if skipped.index in self._skipped:
            return
        self._skipped.add(skipped.index)
        most = self._rules.max_skipped
        if len(self._skipped) > most:
            raise DataError(
                f"{len(self._skipped)} samples cannot be loaded, and max_skipped is {most}; the last one is sample "
                f"{skipped.index}: {skipped.message}",
                "Mend the dataset, or raise data.max_skipped.",
            )
        self._warn(
            f"sample {skipped.index} cannot be loaded and is skipped ({len(self._skipped)} of at most {most}); "
            f"sample {skipped.replacement} takes its place: {skipped.message}"
        )


def _require_start(method: str, num_workers: int) -> None:
    if method not in ("forkserver", "fork"):
        raise UsageError(f"start_method must be forkserver or fork, got {method}")
    if method == "fork" and num_workers and (hazard := fork_hazard()) is not None:
        raise UsageError(
            f"workers cannot be forked from this process: {hazard}",
            "Use start_method='forkserver', or make the loader before anything else has started.",
        )
