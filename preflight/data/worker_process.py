"""One loader worker as its parent sees it: started, given batches to read, ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from preflight.data.pickling import unpicklable_part
from preflight.data.slots import Slot
from preflight.data.worker import serve_batches
from preflight.data.worker_fork import StartMethod, fork_hazard, serve_forked
from preflight.errors import PreflightError, UsageError

# How long workers may take to finish their batch before they are killed.
_GRACE_S = 2.0


@dataclass
class Order:
    """A batch that a worker was given to read."""

    batch: int
    indices: np.ndarray
    slot: Slot | None
    singly: bool = False


@dataclass
class WorkerProcess:
    """A worker and what it has to do."""

    number: int
    process: Any
    pipe: Connection
    orders: dict[int, Order] = field(default_factory=dict)  # that have not been answered, in the order given
    mapped: set[int] = field(default_factory=set)  # slots whose memory it was sent

    @property
    def ends(self) -> tuple[Any, int]:
        """What tells of answers and of its death."""
        return self.pipe, self.process.sentinel


def start_worker(
    number: int,
    dataset: Any,
    first: tuple[Any, ...],
    last: tuple[Any, ...],
    *,
    start_method: StartMethod = "forkserver",
    others: Sequence[WorkerProcess] = (),
) -> WorkerProcess:
    """Starts a process that serves batches.

    Args:
        number: Of the worker.
        dataset: What it reads, for messages.
        first: Arguments of `serve_batches` before the pipe.
        last: Those after it.
        start_method: "fork" makes it a fork of this process.
        others: Workers that live, whose pipes a fork would keep open.

    Raises:
        UsageError: if the dataset cannot be pickled.
        PreflightError: if no process can be had.
    """
    with start_failures(dataset):
        ours, theirs = multiprocessing.Pipe()
        target: Callable[..., None] = serve_batches
        arguments: tuple[Any, ...] = (*first, theirs, *last)
        if start_method == "fork":
            target, arguments = serve_forked, ([ours, *(other.pipe for other in others)], *arguments)
        context: Any = multiprocessing.get_context(start_method)
        process = context.Process(target=target, args=arguments, name=f"loader-worker-{number}", daemon=True)
        with theirs:
            try:
                process.start()
            except BaseException:
                ours.close()
                raise
    return WorkerProcess(number, process, ours)


def end_workers(workers: list[WorkerProcess], open_ends: list[Any], owner: int) -> None:
    """Ends the workers, in the process that has started them; a fork of it leaves them alone.

    Args:
        workers: Empty afterwards.
        open_ends: Closed afterwards.
        owner: The process that has started them.
    """
    if os.getpid() != owner:
        return
    ended, workers[:] = list(workers), []
    for worker in ended:
        worker.pipe.close()  # they read its end and return
    deadline = time.monotonic() + _GRACE_S
    for worker in ended:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
    for worker in ended:
        worker.process.join()
        worker.process.close()
    for end in open_ends:
        end.close()


def _without_a_copy() -> str:
    if (hazard := fork_hazard()) is not None:
        return f"Or use num_workers = 0, which needs no copy of it; a fork is not safe here ({hazard})."
    return "Or use num_workers = 0, or start_method='fork', safe here until JAX or a thread starts: no copy is needed."


@contextlib.contextmanager
def start_failures(dataset: Any) -> Iterator[None]:
    """Says what keeps workers from being started."""
    try:
        yield
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        part = unpicklable_part(dataset)
        named = "" if part is None else f"its attribute {part}: "
        raise UsageError(
            f"the dataset cannot be sent to loader workers: {named}{error}",
            "Define its class at the top of a module; make open files, locks and connections in __getitem__, "
            f"in the worker, or leave them out in __getstate__. {_without_a_copy()}",
        ) from error
    except (EOFError, OSError) as error:
        files = "Too many open files" in str(error)
        raise PreflightError(
            f"the loader's workers could not be started ({type(error).__name__}: {error})",
            "Run: ulimit -n 65536" if files else "The worker server ended early: its own message is on stderr.",
        ) from error
