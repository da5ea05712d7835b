"""Batches on the device, one ahead: the next is loaded and copied while the device works on a step."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import jax
import numpy as np

from preflight.data.loader import BatchLoader
from preflight.data.sampler import order_of
from preflight.errors import PreflightError
from preflight.runs import Facts
from preflight.runs.protocol import Batch
from preflight.training.clocks import Clocks
from preflight.training.mesh import local_rows, put_batch


class DeviceFeed:
    """The run's batches, from a given one on: batch k is step k's, whatever is loaded ahead.

    Images stay as they were decoded, uint8: the model turns them into numbers from -1 to 1 on the device. Of several
    processes, each loads the samples of its own devices.

    Args:
        dataset: The run's.
        facts: Say how it is loaded.
        mesh: Over which each batch is divided.
        start: The first batch.
        clocks: Told when a batch is waited for.

    Raises:
        UsageError: The dataset has no full batch, or cannot be pickled.
    """

    def __init__(self, dataset: Any, facts: Facts, mesh: jax.sharding.Mesh, *, start: int, clocks: Clocks) -> None:
        self._mesh, self._clocks = mesh, clocks
        whole, rows = order_of(dataset, facts.batch_size, facts.seed), local_rows(facts.batch_size, mesh)

        def order(batch: int) -> np.ndarray:
            return whole(batch)[rows]

        self.loader = BatchLoader(
            dataset,
            batch_size=facts.batch_size,
            num_workers=facts.num_workers,
            seed=facts.seed,
            start_batch=start,
            order=order,
            max_worker_restarts=facts.max_worker_restarts,
            on_bad_sample=facts.on_bad_sample,
            max_skipped=facts.max_skipped,
        )
        self._next: tuple[Batch, Batch] | PreflightError | None = None

    def prefetch(self) -> None:
        """Loads the next batch and starts its way to the device.

        Never raises: a batch that cannot be had is no matter of the step that is under way, and `take` will say so.
        """
        if self._next is None:
            with self._clocks.on("data_wait"):
                try:
                    host = next(self.loader)
                    self._next = host, put_batch(host, self._mesh)
                except PreflightError as error:
                    self._next = error

    def take(self) -> tuple[Batch, Batch]:
        """The next batch.

        Returns:
            As the loader gave it (this process's samples, for a picture), and on the device.

        Raises:
            DataError: A sample could not be read.
            PreflightError: A worker died, or no batch came in time.
        """
        self.prefetch()
        taken, self._next = self._next, None
        if isinstance(taken, PreflightError):
            raise taken
        assert taken is not None
        return taken

    def __enter__(self) -> DeviceFeed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._next = None
        self.loader.close()
