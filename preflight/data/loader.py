"""Batches for training: torch's DataLoader over workers that start by a fork of a server with everything imported."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np

from preflight.data import worker_stacks
from preflight.data.collate import unpack
from preflight.data.pickling import unpicklable_part
from preflight.data.sampler import batch_indices
from preflight.data.worker import WORKER_MODULES, BatchReader, SampleFailure, prepare_worker, read_batch, same
from preflight.errors import DataError, PreflightError, UsageError

# How often a waiting loader looks whether its workers live.
_POLL_S = 1.0

# How long `close` lets workers finish their batch before it kills them.
_GRACE_S = 2.0

_SIGNAL_HINTS: dict[int, str] = {
    signal.SIGKILL: "The kernel kills a process when RAM runs out (see dmesg): use fewer workers, or give it more RAM.",
    signal.SIGBUS: "Shared memory is full: enlarge /dev/shm (docker run --shm-size 8g), or use fewer workers.",
    signal.SIGSEGV: "A native library crashed, often a video decoder on a damaged file.",
}


def start_worker_server(modules: Sequence[str] = ()) -> None:
    """Starts the server that loader workers are forked from, if it does not run yet.

    Returns at once; the server imports in the background (torch takes it seconds). Called early, it is ready when the
    first loader wants workers.

    Args:
        modules: What else the samples are made with, imported once for all workers.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preflight.data.worker_preload"])
    with contextlib.ExitStack() as environment:
        for name, value in (
            # The server begins with the working directory on sys.path, where a folder of the user's could shadow a
            # package.
            ("PYTHONSAFEPATH", "1"),
            # Transforms that use jax would each take hundreds of MiB of the GPU (grain#820).
            ("JAX_PLATFORMS", "cpu"),
            (WORKER_MODULES, ",".join(modules)),
        ):
            environment.enter_context(_environment(name, value))
        multiprocessing.forkserver.ensure_running()


class BatchLoader:
    """An endless iterator of shuffled batches from any picklable map-style dataset.

    Batch k holds the samples `batch_indices(len(dataset), batch_size, seed, k)`, whatever the number of workers. It is
    nested like a sample (a dict of dicts of arrays, or an array), each array with the leading axis b; its arrays are
    views of shared memory that lives as long as they do. An array that is the same object in all samples is stored once
    and read-only in the batch.

    Args:
        dataset: With `__len__` and `__getitem__`, which gives nested dicts of numpy arrays or scalars, or an array.
        batch_size: Samples in a batch.
        num_workers: Processes; 0 loads in this one, without torch.
        seed: Of the shuffle.
        start_batch: Number of the first batch, to resume.
        prefetch_factor: Batches that each worker keeps ready.
        timeout_s: How long to wait for a batch, in seconds; the error then says where each worker is.

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
    ) -> None:
        for name, value, least in (
            ("num_workers", num_workers, 0),
            ("start_batch", start_batch, 0),
            ("prefetch_factor", prefetch_factor, 1),
        ):
            if value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}")
        self._closed = False
        self._workers: list[Any] = []
        self._iterator: Any = None
        self._stacks: Connection | None = None  # the workers' answers to where they are
        self._dataset = dataset
        self._timeout_s = timeout_s
        self._indices = _index_stream(len(dataset), batch_size, seed, start_batch)
        batch_indices(len(dataset), batch_size, seed, start_batch)  # refuses what the stream would refuse later
        if num_workers:
            self._start(num_workers, prefetch_factor)

    def worker_pids(self) -> tuple[int, ...]:
        """Gives the workers' process ids; none with 0 workers or after `close`."""
        return tuple(worker.pid for worker in self._workers)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """Waits for the next batch.

        Returns:
            The batch.

        Raises:
            DataError: if a sample could not be read, naming it.
            PreflightError: if a worker died or no batch came in time.
            RuntimeError: if the loader is closed.
        """
        if self._closed:
            raise RuntimeError("this BatchLoader is closed")
        if self._iterator is None:
            result = read_batch(self._dataset, next(self._indices), lambda size: np.empty(size, dtype=np.uint8))
        else:
            result = self._receive()
        if isinstance(result, SampleFailure):
            error = DataError(result.message, result.hint)
            error.add_note(result.details)
            raise error
        leaves, block = result
        return unpack(leaves, block if isinstance(block, np.ndarray) else block.numpy())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers, whatever they are doing; batches already given out stay valid."""
        self._closed = True
        iterator, self._iterator = self._iterator, None
        workers, self._workers = self._workers, []
        if self._stacks is not None:
            self._stacks.close()
        if iterator is None:
            return
        # torch asks its workers to end and waits; one that is stuck in its dataset does not hear it.
        stuck = threading.Timer(_GRACE_S, _kill, args=(workers,))
        stuck.daemon = True
        stuck.start()
        try:
            iterator._shutdown_workers()
        finally:
            stuck.cancel()
            _kill(workers)
            for worker in workers:
                worker.join()

    def _start(self, num_workers: int, prefetch_factor: int) -> None:
        import torch
        import torch.utils.data

        start_worker_server()
        self._stacks, tell = multiprocessing.Pipe(duplex=False)
        try:
            with tell, warnings.catch_warnings():
                # Whether there are too many workers is for the checks to say, which measure it.
                warnings.filterwarnings("ignore", message="This DataLoader will create")
                warnings.filterwarnings("ignore", message="Got pickle error")  # said below
                loader = torch.utils.data.DataLoader(
                    BatchReader(self._dataset),
                    batch_size=None,
                    sampler=self._indices,
                    num_workers=num_workers,
                    collate_fn=same,
                    timeout=_POLL_S,
                    worker_init_fn=partial(prepare_worker, stacks=tell),
                    multiprocessing_context="forkserver",
                    generator=torch.Generator(),  # torch's own seeding then leaves the caller's random state alone
                    prefetch_factor=prefetch_factor,
                )
                self._iterator = iter(loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self._stacks.close()
            part = unpicklable_part(self._dataset)
            named = "" if part is None else f"its attribute {part}: "
            raise UsageError(
                f"the dataset cannot be sent to loader workers: {named}{error}",
                "Define its class at the top of a module; make open files, locks and connections in __getitem__, "
                "in the worker, or leave them out in __getstate__. Or use num_workers = 0, which needs no copy of it.",
            ) from error
        except (EOFError, OSError) as error:
            self._stacks.close()
            raise PreflightError(
                f"the loader's workers could not be started ({type(error).__name__}: {error})",
                "The worker server ended early: its own message is on stderr.",
            ) from error
        self._workers = list(self._iterator._workers)

    def _receive(self) -> Any:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                return next(self._iterator)
            except (RuntimeError, OSError, EOFError) as error:
                self._raise_for_dead_worker(error)
                if "Too many open files" in str(error):
                    raise PreflightError(
                        "too many open files: the loader's workers cannot send their batches", "Run: ulimit -n 65536"
                    ) from error
                # torch's own time-out is our poll; its iterator can be asked again.
                if "timed out" not in str(error):
                    raise
                if time.monotonic() >= deadline:
                    raise self._time_out() from error

    def _time_out(self) -> PreflightError:
        message = f"no batch came from the loader's {len(self._workers)} worker(s) within {self._timeout_s:g} s"
        assert self._stacks is not None
        stacks = worker_stacks.ask(self.worker_pids(), self._stacks.fileno())
        # One that waits for work is not what holds the batch up.
        told = [stack for stack in stacks if stack.place is not None]
        stuck = next((stack for stack in told if stack.reads), next(iter(told), None))
        if stuck is not None:
            message += f"; worker {stuck.number} is at {stuck.place}"
        error = PreflightError(message, f"Reading is stuck or very slow. {worker_stacks.causes(stacks)}")
        for stack in stacks:
            error.add_note("\n".join(stack.lines()))
        return error

    def _raise_for_dead_worker(self, cause: Exception) -> None:
        for number, worker in enumerate(self._workers):
            code = worker.exitcode
            if code is None:
                continue
            who = f"loader worker {number} of {len(self._workers)} (pid {worker.pid})"
            if code < 0:
                name = {int(s): s.name for s in signal.Signals}.get(-code, f"signal {-code}")
                hint = _SIGNAL_HINTS.get(-code, "Something outside the loader ended it.")
                raise PreflightError(f"{who} was killed by {name}", hint) from cause
            raise PreflightError(f"{who} ended with exit code {code}", "Its own message is on stderr.") from cause


def _index_stream(num_samples: int, batch_size: int, seed: int, batch: int) -> Iterator[np.ndarray]:
    while True:
        yield batch_indices(num_samples, batch_size, seed, batch)
        batch += 1


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
