"""What runs in a loader worker: it reads batches, reports what fails, and ends with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from preflight.data.collate import Leaf, pack
from preflight.data.worker_stacks import answer_into
from preflight.errors import PreflightError

# mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# A 640x480 frame (0.9 MiB) is recycled in the heap, larger ones are mapped and given back. Without fixed thresholds
# glibc raises them by itself and the heap fragments: a worker with three cameras grew from 25 to 215 MiB in a minute.
_LARGEST_RECYCLED_BYTES = 1 << 20
_KEPT_BYTES = 8 << 20


# The environment variable that names, to the worker server, modules to import beside its own.
WORKER_MODULES = "PREFLIGHT_WORKER_MODULES"


@dataclasses.dataclass(frozen=True)
class SampleFailure:
    """Why a batch could not be read; goes to the parent in the batch's place."""

    message: str  # names the sample
    hint: str | None
    details: str  # the traceback where it happened


class BatchReader:
    """The dataset that torch's DataLoader sees: its items are batches in shared memory.

    Args:
        dataset: Any map-style dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: Iterable[int]) -> tuple[tuple[Leaf, ...], Any] | SampleFailure:
        import torch

        shared: Any = None

        def allocate(size: int) -> np.ndarray:
            nonlocal shared
            shared = torch.empty(size, dtype=torch.uint8).share_memory_()
            return shared.numpy()

        result = read_batch(self.dataset, indices, allocate)
        return result if isinstance(result, SampleFailure) else (result[0], shared)


def read_batch(
    dataset: Any, indices: Iterable[int], allocate: Callable[[int], np.ndarray]
) -> tuple[tuple[Leaf, ...], np.ndarray] | SampleFailure:
    """Reads samples into one batch.

    Args:
        dataset: Any map-style dataset.
        indices: The samples.
        allocate: Makes uint8[n] of n bytes.

    Returns:
        The batch as `preflight.data.collate.pack` gives it, or what failed.
    """
    index: int | None = None
    wanted = [int(i) for i in indices]
    samples = []
    try:
        for index in wanted:
            samples.append(dataset[index])
        index = None
        return pack(wanted, samples, allocate)
    except Exception as error:  # noqa: BLE001 - a user's dataset may raise anything
        return _failure(error, index)


def _failure(error: Exception, index: int | None) -> SampleFailure:
    message, hint = str(error), None
    if isinstance(error, PreflightError):
        message, hint = error.message, error.hint
    else:
        place = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {message} ({os.path.basename(place.filename)}, line {place.lineno})"
    if index is not None:
        message = f"sample {index} cannot be loaded: {message}"
    return SampleFailure(message, hint, "".join(traceback.format_exception(error)))


def same(batch: Any) -> Any:
    """Collates nothing: `BatchReader` has done it.

    Args:
        batch: What the reader gave.

    Returns:
        The same.
    """
    return batch


def prepare_worker(worker_id: int, stacks: multiprocessing.connection.Connection) -> None:
    """Runs first in each worker.

    Args:
        worker_id: Its number among the workers.
        stacks: What it tells where it is through, when the parent asks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer_into(stacks)
    # A worker's parent is the worker server, which lives as long as its workers do: torch's own watchdog, which watches
    # the parent, would let all of them outlive a training process that was killed.
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets malloc keep the memory of a few frames, instead of giving it back and asking for it again, and no more.

    At 640x480 that is 650 page faults a sample, a fifth of its time.
    """
    with contextlib.suppress(AttributeError, OSError):  # only glibc has it
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_RECYCLED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _end_with_parent() -> None:
    process = multiprocessing.parent_process()
    if process is not None:
        multiprocessing.connection.wait([process.sentinel])
        os._exit(1)
