"""Datasets whose cost is known, to hold the benchmark's figures against (`bench.selftest`, the tests)."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

MIB = 1 << 20


class Latency:
    """Every sample takes a fixed time and no CPU.

    Args:
        seconds: A sample's time, whatever a derived class does in it included.
        length: Number of samples.
    """

    def __init__(self, seconds: float, *, length: int = 4096) -> None:
        self.seconds = seconds
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        ends = time.perf_counter() + self.seconds
        self._work(index)
        time.sleep(max(0.0, ends - time.perf_counter()))
        return {"index": np.array(index, np.int64)}

    def _work(self, index: int) -> None:
        """What is done within the sample's time."""


class Busy(Latency):
    """Every sample takes a fixed CPU time."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return {"index": np.array(index, np.int64)}


class Holding(Latency):
    """Every process that loads holds a fixed number of bytes, touched, beside a fixed time a sample."""

    def __init__(self, held_bytes: int, *, seconds: float = 0.002) -> None:
        super().__init__(seconds)
        self.held_bytes = held_bytes
        self.held: np.ndarray | None = None

    def _work(self, index: int) -> None:
        if self.held is None:
            self.held = np.ones(self.held_bytes, np.uint8)


class Leaking(Latency):
    """Every sample leaves a fixed number of bytes behind, touched, in the process that loaded it."""

    def __init__(self, leaked_bytes: int, *, seconds: float) -> None:
        super().__init__(seconds)
        self.leaked_bytes = leaked_bytes
        self.leaked: list[np.ndarray] = []

    def _work(self, index: int) -> None:
        self.leaked.append(np.ones(self.leaked_bytes, np.uint8))


class FailsAt(Latency):
    """One sample cannot be read."""

    def __init__(self, bad: int, *, length: int, seconds: float = 0.0) -> None:
        super().__init__(seconds, length=length)
        self.bad = bad

    def _work(self, index: int) -> None:
        if index == self.bad:
            raise ValueError(f"frame {index} is torn")


class HangsAt(Latency):
    """One sample never comes."""

    def __init__(self, stuck: int, *, length: int, seconds: float = 0.0) -> None:
        super().__init__(seconds, length=length)
        self.stuck = stuck

    def _work(self, index: int) -> None:
        if index == self.stuck:
            time.sleep(3600)


class Staged(Latency):
    """Every sample is made in two stages, each of a fixed CPU time."""

    def __init__(self, *, decode_s: float, transform_s: float, length: int = 4096) -> None:
        super().__init__(0.0, length=length)
        self.decode_s = decode_s
        self.transform_s = transform_s

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._transform(self._decode(index))

    def sample_stages(self) -> tuple[tuple[str, object], ...]:
        """The stages, for `bench.timed_dataset`."""
        return ("decode", self._decode), ("transform", self._transform)

    def _decode(self, index: int) -> int:
        Busy(self.decode_s)[index]
        return index

    def _transform(self, index: int) -> dict[str, np.ndarray]:
        return Busy(self.transform_s)[index]


class StagedTogether(Staged):
    """A batch's samples are decoded together in the time that one alone takes, as those of one pass through a video."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        return self._transform_all(self._decode_all(indices))

    def batch_stages(self) -> tuple[tuple[str, object], ...]:
        """The stages of a batch, for `bench.timed_dataset`."""
        return ("decode", self._decode_all), ("transform", self._transform_all)

    def _decode_all(self, indices: Sequence[int]) -> Sequence[int]:
        self._decode(indices[0])
        return indices

    def _transform_all(self, decoded: Sequence[int]) -> list[dict[str, np.ndarray]]:
        return [self._transform(index) for index in decoded]
