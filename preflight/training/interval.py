"""The metrics of a log interval: kept on the device step by step, fetched in one piece while it goes on working."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from preflight.training.metrics import reduce_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """The metrics of an interval, on their way to the host."""

    first_step: int
    last_step: int
    names: tuple[str, ...]
    rows: Any  # float32[capacity, metrics], of which the first ones are filled

    def each(self) -> dict[str, np.ndarray]:
        """Every step's values by metric, float64[steps]; waits for the interval's last step, and for no later one."""
        filled = np.asarray(self.rows)[: self.last_step - self.first_step + 1].astype(np.float64)
        return dict(zip(self.names, filled.T, strict=True))

    def reduced(self, accumulation_steps: int = 1) -> dict[str, float]:
        """One value for each metric, see `reduce_steps`; waits as `each` does."""
        return reduce_steps(self.each(), first_step=self.first_step, accumulation_steps=accumulation_steps)

    def not_finite(self, *names: str) -> tuple[int, str] | None:
        """The first step at which one of these metrics (all, where none is named) was NaN or infinite, and which."""
        each = self.each()
        bad = [
            (int(np.flatnonzero(~np.isfinite(each[name]))[0]), name)
            for name in names or self.names
            if name in each and not np.isfinite(each[name]).all()
        ]
        return (self.first_step + min(bad)[0], min(bad)[1]) if bad else None


class IntervalMetrics:
    """Collects the metrics of each step of a log interval, and never waits for the device.

    Args:
        capacity: The most steps that an interval has.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._names: tuple[str, ...] = ()
        self._rows: Any = None
        self._place: Any = None  # on the device: passing a number to each call would be a copy each
        self._count = 0
        self._first_step = 0

    def __len__(self) -> int:
        return self._count

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes a step's metrics in; only dispatches.

        Args:
            step: The one after the step added last, unless the interval is empty.
            metrics: Scalars on the device; the same names for each step.

        Raises:
            ValueError: The steps do not follow each other, or there are more than the capacity.
        """
        if self._count == self._capacity or (self._count and step != self._first_step + self._count):
            raise ValueError(
                f"step {step} cannot follow the {self._count} steps from {self._first_step} of an interval of at most "
                f"{self._capacity}"
            )
        if self._count == 0:
            # Sorted, as jit gives dicts back.
            self._begin(step, tuple(sorted(metrics)), next(iter(metrics.values())).sharding)
        values = [metrics[name] for name in self._names]
        self._rows, self._place = _append(self._rows, self._place, values)
        self._count += 1

    def fetch(self) -> Fetched:
        """Starts the copy of what was collected, and an empty interval; waits for nothing.

        Raises:
            ValueError: Nothing was collected.
        """
        if not self._count:
            raise ValueError("the interval has no steps")
        self._rows.copy_to_host_async()
        last = self._first_step + self._count - 1
        fetched = Fetched(first_step=self._first_step, last_step=last, names=self._names, rows=self._rows)
        self._rows, self._place, self._count = None, None, 0
        return fetched

    def peek(self) -> Fetched | None:
        """What was collected so far, which stays here too; None where that is nothing.

        For a checkpoint between two log steps: kept beside it and given to `load`, the resumed run's next record is
        the one that it would have been.
        """
        if not self._count:
            return None
        last = self._first_step + self._count - 1
        # A copy: the next step's row is written where these lie.
        return Fetched(first_step=self._first_step, last_step=last, names=self._names, rows=jnp.copy(self._rows))

    def load(self, first_step: int, each: Mapping[str, Sequence[float]], sharding: jax.sharding.Sharding) -> None:
        """Puts back what `peek().each()` gave.

        Args:
            first_step: The first step of the interval.
            each: Every step's values by metric, finite or not.
            sharding: Where a step's metrics lie: `replicated(mesh)`.

        Raises:
            ValueError: The metrics have different numbers of values, or more than the capacity.
        """
        values = np.asarray([each[name] for name in sorted(each)], np.float32).T
        if values.ndim != 2 or len(values) > self._capacity:
            raise ValueError(f"the values of an interval of at most {self._capacity} steps have shape {values.shape}")
        self._begin(first_step, tuple(sorted(each)), sharding, values)

    def _begin(
        self, step: int, names: tuple[str, ...], sharding: jax.sharding.Sharding, values: np.ndarray | None = None
    ) -> None:
        rows = np.full((self._capacity, len(names)), np.nan, np.float32)
        self._count = 0 if values is None else len(values)
        if values is not None:
            rows[: len(values)] = values
        self._names, self._first_step = names, step
        self._rows, self._place = _whole(rows, sharding), _whole(np.int32(self._count), sharding)


def _whole(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A copy of the host's value on every device.

    One by one: given a sharding over several processes, jax.device_put has them compare their values first, for which
    each waits, and before jax 0.6 a NaN differs from itself there.
    """
    # Never an alias of the host's array: it is donated to the next step's write.
    copies = [jax.device_put(value, device, may_alias=False) for device in sharding.addressable_devices]
    return jax.make_array_from_single_device_arrays(np.shape(value), sharding, copies)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _append(rows: Any, place: Any, values: list[Any]) -> tuple[Any, Any]:
    row = jnp.stack([value.astype(jnp.float32) for value in values])
    return jax.lax.dynamic_update_index_in_dim(rows, row, place, axis=0), place + 1
