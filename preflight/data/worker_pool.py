"""The processes that read batches: who has which, what has come, and what becomes of one that dies."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import selectors
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from preflight.data import worker_stacks
from preflight.data.batch_reading import ReadBatch, ReadingRules, SampleFailure
from preflight.data.shared_array import SharedArray
from preflight.data.slots import Slot, Slots
from preflight.data.worker import NOT_BEGUN, Answer, Task
from preflight.data.worker_deaths import death
from preflight.data.worker_fork import StartMethod, fork_hazard
from preflight.data.worker_process import Order, WorkerProcess, end_workers, start_failures, start_worker
from preflight.data.worker_server import renew_worker_server, start_worker_server
from preflight.errors import PreflightError

# Slots beside those of the batches under way: one in use, one on its way to the device and what the device's arrays may
# refer to (on the CPU, jax takes an array over without a copy), and some to spare. Batches beyond take the pipe.
HELD_SLOTS = 8

# Tasks that wait in a worker's pipe fit into its buffer, so that the parent never waits for a worker to take one while
# that waits for the parent to take a batch. AF_UNIX holds 208 KiB on Linux, 8 KiB on macOS.
_QUEUED_BYTES = 1 << 15 if sys.platform == "linux" else 1 << 12


class WorkerPool:
    """Batches in order, read by worker processes.

    Each worker has a pipe of its own: what one leaves half said when it is killed can hold nobody else up. The
    batches under way, or read and not yet received, are `num_workers * prefetch_factor`; the next one is given to the
    worker that has the fewest to do.

    Args:
        dataset: Any picklable map-style dataset.
        num_workers: Processes, at least 1.
        order: Gives a batch's indices.
        start_batch: Number of the first batch.
        prefetch_factor: Batches that each worker keeps ready.
        rules: How samples are read.
        seed: Of the loader.
        timeout_s: How long to wait for a batch, in seconds.
        max_restarts: How many workers may die and be replaced.
        warn: Told of each restart, and of batches that cannot go through shared memory.
        start_method: Of the workers.

    Raises:
        UsageError: if the dataset cannot be pickled.
        PreflightError: if the workers cannot be started.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        num_workers: int,
        order: Callable[[int], np.ndarray],
        start_batch: int,
        prefetch_factor: int,
        rules: ReadingRules,
        seed: int,
        timeout_s: float,
        max_restarts: int,
        warn: Callable[[str], None],
        start_method: StartMethod = "forkserver",
    ) -> None:
        self._dataset, self._order, self._rules, self._seed = dataset, order, rules, seed
        self._timeout_s, self._max_restarts, self._warn = timeout_s, max_restarts, warn
        self._prefetch_factor, self._start_method = prefetch_factor, start_method
        self._most_under_way = num_workers * prefetch_factor
        self._given = self._next = start_batch  # the next batch to hand out, and to receive
        self._arrived: dict[int, tuple[ReadBatch, Slot | None] | SampleFailure] = {}
        self._restarts = 0
        self._dead: PreflightError | None = None
        self._pipes_told = False
        self._slots = Slots(self._most_under_way + HELD_SLOTS)
        self._workers: list[WorkerProcess] = []
        with start_failures(dataset):
            self._places = SharedArray((num_workers,), np.dtype(np.int64), writable=True)
            self._selector = selectors.DefaultSelector()
            self._stacks, self._tell = multiprocessing.Pipe(duplex=False)  # the workers' answers to where they are
        open_ends = [self._selector, self._stacks, self._tell]
        self._end = weakref.finalize(self, end_workers, self._workers, open_ends, os.getpid())
        # What uses torch has it loaded here, too; nothing else shall pay for it.
        if start_method == "forkserver":
            start_worker_server(("torch", "torch.utils.data") if "torch" in sys.modules else ())
        try:
            for number in range(num_workers):
                self._workers.append(self._start(number, num_workers))
            self._hand_out()
        except BaseException:
            self._end()
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers; none after `close`."""
        return tuple(worker.process.pid for worker in self._workers)

    def where(self) -> list[worker_stacks.WorkerStack]:
        """Tells where the workers are in their code, whatever they are stuck in."""
        return worker_stacks.ask(self.pids, self._stacks.fileno())

    def close(self) -> None:
        """Ends all workers, whatever they are doing; batches already given out stay valid."""
        self._end()
        self._arrived.clear()

    def receive(self) -> ReadBatch | SampleFailure:
        """Waits for the next batch, in order; its block is free for another batch when nothing refers to it any more.

        Raises:
            PreflightError: if no batch came in time, or a worker died and none may be restarted.
        """
        if self._dead is not None:
            raise self._dead
        self._listen(0)
        deadline = time.monotonic() + self._timeout_s
        while self._next not in self._arrived:
            restarts = self._restarts
            if not self._listen(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                raise worker_stacks.time_out(self.pids, self._stacks.fileno(), self._timeout_s)
            if self._restarts > restarts:
                deadline = time.monotonic() + self._timeout_s
        result = self._arrived.pop(self._next)
        self._next += 1
        if isinstance(result, SampleFailure):
            self._hand_out()
            return result
        batch, slot = result
        if slot is not None:
            batch = ReadBatch(batch.leaves, self._slots.lend(slot), batch.skipped)
        self._hand_out()
        return batch

    def _hand_out(self) -> None:
        """Gives the next batches to the workers that have the least to do."""
        while self._given - self._next < self._most_under_way:
            worker = min(self._workers, key=lambda one: len(one.orders))
            if len(worker.orders) >= self._prefetch_factor:
                return
            indices = np.asarray(self._order(self._given))
            if worker.orders and (len(worker.orders) + 1) * (indices.nbytes + 512) > _QUEUED_BYTES:
                return
            order = Order(self._given, indices, self._slots.take())
            if order.slot is None and self._slots.refusal is not None:
                self._tell_of_pipes(self._slots.refusal)
            self._given += 1
            worker.orders[order.batch] = order
            self._send(worker, order)

    def _send(self, worker: WorkerProcess, order: Order) -> None:
        alive = self._slots.alive
        forget = worker.mapped - alive
        worker.mapped &= alive
        memory = None
        if order.slot is not None and order.slot.number not in worker.mapped:
            memory = pickle.dumps(order.slot.memory)
            worker.mapped.add(order.slot.number)
        slot = None if order.slot is None else order.slot.number
        # Where the worker has just died, its sentinel tells so next.
        with contextlib.suppress(OSError):
            worker.pipe.send(Task(order.batch, order.indices, slot, memory, tuple(forget), order.singly))

    def _listen(self, wait_s: float) -> bool:
        """Takes what has come, after waiting for it; False if that was nothing."""
        events = self._selector.select(wait_s)
        for key, _ in events:
            worker: WorkerProcess = key.data
            if worker.pipe.closed:
                continue  # its death came first, and it has been replaced
            self._take_answers(worker)
            if key.fileobj == worker.process.sentinel:
                self._replace(worker)
        self._hand_out()
        return bool(events)

    def _take_answers(self, worker: WorkerProcess) -> None:
        try:
            while worker.pipe.poll():
                answer: Answer = worker.pipe.recv()
                order = worker.orders[answer.batch]
                self._arrived[answer.batch] = self._result(worker, order, answer)
                del worker.orders[answer.batch]
        except (EOFError, OSError):
            # It died, perhaps in the middle of an answer: what it had to do is done again. The sentinel tells how.
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(worker.pipe)

    def _result(
        self, worker: WorkerProcess, order: Order, answer: Answer
    ) -> tuple[ReadBatch, Slot | None] | SampleFailure:
        slot = order.slot
        if answer.in_slot and slot is not None:
            return ReadBatch(_leaves(answer.leaves), slot.memory.array, answer.skipped), slot
        block = np.empty(answer.size, np.uint8)
        if answer.failure is None:
            worker.pipe.recv_bytes_into(block)
            self._slots.learn(answer.size)
        if slot is not None:
            # Only now: should the worker die before all has come, the batch is read into this slot again.
            order.slot = None
            self._slots.give_back(slot)
            if answer.failure is None and answer.size <= slot.memory.array.size:
                self._tell_of_pipes(f"worker {worker.number} cannot map it")
        if answer.failure is not None:
            return answer.failure
        return ReadBatch(_leaves(answer.leaves), block, answer.skipped), None

    def _replace(self, worker: WorkerProcess) -> None:
        """Starts another worker in a dead one's place, which does again what that had not done."""
        worker.process.join()
        self._stop_listening(worker)
        at = next(iter(worker.orders.values()), None)
        error = death(
            worker.number, len(self._workers), worker.process.pid, worker.process.exitcode,
            int(self._places.array[worker.number]), None if at is None else at.indices,
        )  # fmt: skip
        if self._restarts and self._restarts == self._max_restarts:
            error = PreflightError(f"{error.message}; {self._restarts} had been restarted before", error.hint)
        self._dead = error  # until another one works in its place
        if self._restarts == self._max_restarts:
            raise error
        if self._start_method == "fork" and (hazard := fork_hazard()) is not None:
            raise PreflightError(f"{error.message}; none can be forked in its place now: {hazard}", error.hint)
        self._restarts += 1
        self._warn(f"{error.message}; restarting it ({self._restarts} of {self._max_restarts} restarts)")
        if self._start_method == "forkserver":
            renew_worker_server()
        successor = self._start(worker.number, len(self._workers))
        self._workers[worker.number] = successor
        for order in worker.orders.values():
            # Read one by one, the sample that kills again is known.
            order.singly = order is at or order.singly
            successor.orders[order.batch] = order
            self._send(successor, order)
        self._dead = None

    def _stop_listening(self, worker: WorkerProcess) -> None:
        for end in worker.ends:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)
        worker.pipe.close()

    def _start(self, number: int, num_workers: int) -> WorkerProcess:
        self._places.array[number] = NOT_BEGUN
        begin = (number, num_workers, self._dataset, self._rules, self._seed)
        others = [worker for worker in self._workers if worker.number != number]
        worker = start_worker(
            number, self._dataset, begin, (self._tell, self._places), start_method=self._start_method, others=others
        )
        for end in worker.ends:
            self._selector.register(end, selectors.EVENT_READ, worker)
        return worker

    def _tell_of_pipes(self, why: str) -> None:
        if not self._pipes_told:
            self._pipes_told = True
            self._warn(f"batches are copied through pipes, for want of shared memory ({why}); loading may be slower")


@functools.lru_cache(maxsize=8)
def _leaves(pickled: bytes) -> Any:
    return pickle.loads(pickled)
