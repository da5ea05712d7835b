"""Statistics of values that are gone through in blocks: exact, and of whatever number of frames in the same memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import Float64, Int64

from preflight.data.normalize import QUANTILES, NormStats
from preflight.data.quantile_search import QuantileSearch
from preflight.telemetry.cpus import usable_cpus

# Up to so many values of a dimension are held; of more, quantiles are bracketed by a sample of that size.
_HELD = 1 << 17
_SAMPLE = 1 << 16

# Values of a piece: half a megabyte in float64.
_PIECE = 1 << 16

_MAX_THREADS = 16

Pieces = Iterable[tuple[np.ndarray, np.ndarray | None]]  # float[k], and how often each counts (None: once)
Progress = Callable[[int, int], None]  # frames done, frames in all
Block = TypeVar("Block")


class ValueBlock(Protocol):
    """The values of some frames."""

    @property
    def frames(self) -> int:
        """How many."""
        ...

    def pieces(self, name: str, dim: int) -> Pieces:
        """One dimension's values, in pieces that stay in a CPU's cache; a piece is valid until the next is asked for.

        Args:
            name: "state" or "actions".
            dim: Index of the dimension.
        """
        ...


class ValueSource(Protocol):
    """The values of all frames; they may be gone through more than once."""

    @property
    def frames(self) -> int:
        """How many."""
        ...

    @property
    def widths(self) -> Mapping[str, int]:
        """Dimensions of "state" and "actions"."""
        ...

    @property
    def horizon(self) -> int:
        """Actions that each frame has; its state is one."""
        ...

    def blocks(self) -> Iterator[ValueBlock]:
        """All frames, once."""
        ...

    def drawn(self, frames: Int64[np.ndarray, " k"], steps: Int64[np.ndarray, " k"]) -> dict[str, np.ndarray]:
        """Single values.

        Args:
            frames: Indices of frames, rising; one may come more than once.
            steps: For each the step of its actions.

        Returns:
            "state" and "actions", float[k, d].
        """
        ...


@dataclasses.dataclass(frozen=True)
class ArrayBlock:
    """Values that are held: a `ValueBlock`, and all of what there is as a `ValueSource` to `summarise`."""

    values: Mapping[str, np.ndarray]  # "state" float[n, d] and "actions" float[n, h, d], by frame

    @property
    def frames(self) -> int:
        """How many."""
        return len(self.values["state"])

    @property
    def widths(self) -> Mapping[str, int]:
        """Dimensions of each."""
        return {name: array.shape[-1] for name, array in self.values.items()}

    @property
    def horizon(self) -> int:
        """Actions that each frame has."""
        return int(np.prod(self.values["actions"].shape[1:-1]))

    def blocks(self) -> Iterator[ArrayBlock]:
        """All of it."""
        yield self

    def drawn(self, frames: Int64[np.ndarray, " k"], steps: Int64[np.ndarray, " k"]) -> dict[str, np.ndarray]:
        """The state and one action of some frames: float[k, d] each."""
        return {"state": self.values["state"][frames], "actions": self.values["actions"][frames, steps]}

    def pieces(self, name: str, dim: int) -> Pieces:
        """One dimension's values."""
        column = np.ascontiguousarray(self.values[name][..., dim]).reshape(-1)
        for start in range(0, len(column), _PIECE):
            yield column[start : start + _PIECE], None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What the values of each dimension do; NaN where one of them is not finite."""

    count: int  # values of each
    mean: Float64[np.ndarray, " d"]
    std: Float64[np.ndarray, " d"]  # of the population
    low: Float64[np.ndarray, " d"]
    high: Float64[np.ndarray, " d"]
    share_outside: Float64[np.ndarray, " d"]  # of the bounds that were given, 0 to 1


def summarise(
    source: ValueSource,
    bounds: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> dict[str, Summary]:
    """Goes through the values once.

    Args:
        source: The values.
        bounds: By "state" and "actions" the lowest and the highest value, float[d] each, beyond which values are
            counted as outside; None counts none.
        progress: Told how far it is.

    Returns:
        By "state" and "actions".
    """
    dims = [(name, dim) for name, width in source.widths.items() for dim in range(width)]
    moments = {at: _Moments(None if bounds is None else tuple(bounds[at[0]][i][at[1]] for i in (0, 1))) for at in dims}
    _pass(source, {at: (moments[at].add,) for at in dims}, progress)
    return {name: _joined([moments[name, dim] for dim in range(width)]) for name, width in source.widths.items()}


def exact_stats(
    source: ValueSource, *, progress: Progress = lambda done, total: None
) -> tuple[dict[str, NormStats], dict[str, Summary]]:
    """Computes the statistics that `numpy` gives for all values: sums in float64, quantiles by linear interpolation.

    More values than can be held are gone through once after a sample was drawn, and in the rare case that the sample
    misled, or where a share of them is still too many to be held, once more.

    Args:
        source: The values.
        progress: Told how far it is, anew in each pass.

    Returns:
        The statistics, and the summary, by "state" and "actions"; NaN where a dimension has a value that is not finite.
    """
    totals = {name: source.frames * (source.horizon if name == "actions" else 1) for name in source.widths}
    sample: Mapping[str, np.ndarray] = {}
    if max(totals.values()) > _HELD:
        rng = np.random.default_rng(0)
        frames = np.sort(rng.integers(source.frames, size=_SAMPLE))
        sample = source.drawn(frames, rng.integers(source.horizon, size=_SAMPLE))
    dims = [(name, dim) for name, width in source.widths.items() for dim in range(width)]
    moments = {at: _Moments(None) for at in dims}
    searches = {
        (name, dim): [
            QuantileSearch(q, totals[name], sample[name][:, dim] if totals[name] > _HELD else None) for q in QUANTILES
        ]
        for name, dim in dims
    }
    found: dict[tuple[str, int], list[float | None]] = {at: [None] * len(QUANTILES) for at in dims}
    adders = {at: (moments[at].add, *(search.add for search in searches[at])) for at in dims}
    while adders:
        _pass(source, adders, progress)
        adders = {}
        for at in dims:
            if not moments[at].finite:
                found[at] = [float("nan")] * len(QUANTILES)
            left = []
            for index, search in enumerate(searches[at]):
                if found[at][index] is None and (value := search.found()) is None:
                    left.append(search.add)
                elif found[at][index] is None:
                    found[at][index] = value
            if left:
                adders[at] = tuple(left)
    summaries = {name: _joined([moments[name, dim] for dim in range(width)]) for name, width in source.widths.items()}
    stats = {}
    for name, width in source.widths.items():
        q01, q99 = np.array([found[name, dim] for dim in range(width)], dtype=np.float64).reshape(-1, 2).T
        stats[name] = NormStats(mean=summaries[name].mean, std=summaries[name].std, q01=q01, q99=q99)
    return stats, summaries


class _Moments:
    """Count, mean and deviation of one dimension, merged piece by piece after Chan, Golub and LeVeque (1983)."""

    def __init__(self, bounds: tuple[float, ...] | None) -> None:
        self._bounds = bounds
        self._origin: float | None = None  # the first value: what is constant is then zero throughout, without rounding
        self.count = self.outside = 0
        self.mean = self.squares = 0.0  # about the origin; of the distances from the mean
        self.low, self.high = float("inf"), float("-inf")

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.mean) and np.isfinite(self.squares))

    def add(self, values: np.ndarray, weights: np.ndarray | None) -> None:
        if self._origin is None:
            self._origin = float(values[0])
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf: it shows in `finite`
            count = len(values) if weights is None else int(weights.sum())
            distances = values.astype(np.float64)
            distances -= self._origin
            mean = float(distances.sum() if weights is None else distances @ weights) / count
            distances -= mean
            distances *= distances
            squares = float(distances.sum() if weights is None else distances @ weights)
            shift, total = mean - self.mean, self.count + count
            self.squares += squares + shift**2 * self.count * count / total
            self.mean += shift * count / total
        self.count = total
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        if self._bounds is not None:
            outside = (values < self._bounds[0]) | (values > self._bounds[1])
            self.outside += int(np.count_nonzero(outside) if weights is None else weights[outside].sum())

    def row(self) -> tuple[float, ...]:
        if not self.finite:
            return (float("nan"),) * 5
        std = (self.squares / self.count) ** 0.5
        return (self._origin or 0.0) + self.mean, std, self.low, self.high, self.outside / self.count


def _joined(moments: list[_Moments]) -> Summary:
    mean, std, low, high, outside = np.array([each.row() for each in moments], dtype=np.float64).reshape(-1, 5).T
    count = moments[0].count if moments else 0
    return Summary(count=count, mean=mean, std=std, low=low, high=high, share_outside=outside)


_Adder = Callable[[np.ndarray, "np.ndarray | None"], None]


def _pass(source: ValueSource, adders: Mapping[tuple[str, int], tuple[_Adder, ...]], progress: Progress) -> None:
    """Shows every adder its dimension's values; a dimension is one thread's at a time, and the next block is read."""
    done = 0
    with ThreadPoolExecutor(min(_MAX_THREADS, math.ceil(usable_cpus().count))) as pool:
        for block in _read_ahead(source.blocks()):

            def through(at: tuple[str, int], block: ValueBlock = block) -> None:
                for values, weights in block.pieces(*at):
                    for add in adders[at]:
                        add(values, weights)

            list(pool.map(through, adders))
            done += block.frames
            progress(done, source.frames)


def _read_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    with ThreadPoolExecutor(max_workers=1) as reader:
        pending = reader.submit(next, blocks, None)
        while (block := pending.result()) is not None:
            pending = reader.submit(next, blocks, None)
            yield block
