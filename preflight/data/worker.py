"""What runs in a loader worker: it reads the batches that it is told to, and ends with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from preflight.data.batch_reading import ReadingRules, SampleFailure, Skipped, read_batch
from preflight.data.batch_seeds import seed_batch, tell_torch
from preflight.data.shared_array import SharedArray
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
# The one that names to it the process that started it, and the folder of the socket by which it is asked for workers.
SOCKET_FOLDER = "PREFLIGHT_SOCKET_FOLDER"

# What a worker writes about itself where the parent can read it after its death: the sample it reads, or one of these.
WHOLE_BATCH, BETWEEN_BATCHES, NOT_BEGUN = -1, -2, -3


@dataclasses.dataclass(frozen=True)
class Task:
    """One batch to read."""

    batch: int
    indices: np.ndarray
    slot: int | None  # number of the shared memory that it goes into; None: it is sent through the pipe
    memory: bytes | None  # that memory, a pickled `SharedArray`, where the worker has not seen it
    forget: tuple[int, ...]  # slots that are no more
    singly: bool  # read sample by sample, even where the dataset could read them together


@dataclasses.dataclass(frozen=True)
class Answer:
    """A batch that was read, or why not."""

    batch: int
    leaves: bytes = b""  # pickled `preflight.data.collate.Leaf`s: the same bytes for batches that are laid out alike
    size: int = 0  # of the block, in bytes
    in_slot: bool = False  # otherwise the block is the next message
    skipped: tuple[Skipped, ...] = ()
    failure: SampleFailure | None = None


def serve_batches(
    number: int,
    num_workers: int,
    dataset: Any,
    rules: ReadingRules,
    seed: int,
    pipe: Connection,
    stacks: Connection,
    places: SharedArray,
) -> None:
    """A worker's life: reads one `Task` after the other, until the parent closes the pipe.

    Args:
        number: Of this worker.
        num_workers: In all.
        dataset: Any map-style dataset.
        rules: How to read it.
        seed: Of the loader.
        pipe: Tasks come and answers go through it.
        stacks: What it tells where it is through, when the parent asks.
        places: int64[num_workers]; at `number` it keeps the sample that it reads.
    """
    _prepare(stacks)
    tell_torch(number, num_workers, seed, dataset)
    place = places.array[number : number + 1]

    def begin(index: int | None) -> None:
        place[0] = WHOLE_BATCH if index is None else index

    slots: dict[int, np.ndarray] = {}
    while True:
        place[0] = BETWEEN_BATCHES
        try:
            task: Task = pipe.recv()
            for gone in task.forget:
                slots.pop(gone, None)
            if task.memory is not None and task.slot is not None:
                # Without it, for want of a descriptor perhaps, the batch takes the pipe.
                with contextlib.suppress(PreflightError, OSError):
                    slots[task.slot] = pickle.loads(task.memory).array
            slot = slots.get(task.slot) if task.slot is not None else None
            seed_batch(seed, task.batch)
            how = dataclasses.replace(rules, singly=rules.singly or task.singly)
            result = read_batch(dataset, task.indices, functools.partial(_block, slot), rules=how, begin=begin)
            _answer(pipe, task, slot, result)
        except (EOFError, ConnectionError):
            return  # the parent is done


def _block(slot: np.ndarray | None, size: int) -> np.ndarray:
    return slot[:size] if slot is not None and slot.size >= size else np.empty(size, np.uint8)


def _answer(pipe: Connection, task: Task, slot: np.ndarray | None, result: Any) -> None:
    if isinstance(result, SampleFailure):
        pipe.send(Answer(task.batch, failure=result))
        return
    in_slot = slot is not None and slot.size >= result.block.size
    pipe.send(Answer(task.batch, pickle.dumps(result.leaves), result.block.size, in_slot, result.skipped))
    if not in_slot:
        pipe.send_bytes(result.block)


def _prepare(stacks: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answer_into(stacks)
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
    """Ends this process as soon as the one that loads, or the server that forked this one, has ended.

    The pipes that tell it would stay open in any other process that the parent has forked; the processes themselves,
    where the system shows them (Linux 5.3), tell it in any case.
    """
    process = multiprocessing.parent_process()
    if process is None:
        return
    ends: list[Any] = [process.sentinel]
    for pid in (process.pid, os.getppid()):
        with contextlib.suppress(OSError, AttributeError):
            ends.append(os.pidfd_open(pid or 0))
    multiprocessing.connection.wait(ends)
    os._exit(1)
