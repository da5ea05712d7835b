"""Two sweeps compared by their intervals: faster, slower, no difference, or not comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.results import PointResult, SweepResult
from bench.statistics import Estimate, block_rates, median_ratio

# A ratio nearer to 1 than this is none that anybody would act on, even where the interval leaves 1 out (criterion's
# noise threshold).
NOISE = 0.01
# A smaller difference in a worker's memory is none: what is stored is a peak, without an interval, and between sweeps
# of one dataset a worker's peak USS differed by 37 MiB (18 to 55, AV1 decoding, a busy machine of two cores).
MEMORY_NOISE_MIB = 50.0
MEMORY_NOISE = 0.10
# MemTotal differs by some pages from one boot of the same machine to the next.
_RAM_TOLERANCE = 0.01

_PACKAGES = {"robot-preflight": "preflight", "torch": "torch", "av": "av", "numpy": "numpy"}
# What must be the same for two results to say anything about each other, by its name for people. The config may differ:
# that is what one compares.
_IDENTITY: dict[str, tuple[str, ...]] = {
    "CPU": ("environment", "cpu"),
    "usable CPUs": ("environment", "cpus_usable"),
    "RAM": ("environment", "ram_bytes"),
    "platform": ("environment", "platform"),
    "dataset root": ("dataset", "root"),
    "dataset frames": ("dataset", "frames"),
    "dataset format": ("dataset", "codebase_version"),
    "dataset": ("dataset", "description"),
    "batch size": ("batch_size",),
    "start method": ("start_method",),
    "cold": ("page_cache", "cold"),
    "python": ("environment", "python"),
    **{title: ("environment", "packages", name) for name, title in _PACKAGES.items()},
}


@dataclass(frozen=True, kw_only=True)
class OldPoint:
    """One number of workers of a stored sweep."""

    num_workers: int
    samples_per_s: Estimate
    intervals_s: tuple[tuple[float, ...], ...]  # as in PointResult
    pss_mib: float | None
    uss_mib: float | None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A stored sweep."""

    name: str
    document: Mapping[str, Any]  # as of SweepResult.to_json
    points: Mapping[int, OldPoint]  # by number of workers


@dataclass(frozen=True)
class Difference:
    """Something that is not the same here and in the baseline; printable values."""

    field: str
    here: str
    there: str


@dataclass(frozen=True, kw_only=True)
class PointComparison:
    """One number of workers, here against the baseline."""

    num_workers: int
    here: Estimate  # samples/s
    there: Estimate
    ratio: Estimate  # of the samples/s, here to there
    verdict: str  # "faster", "slower" or "no difference"
    pss_mib: tuple[float | None, float | None]  # a worker's, here and there
    uss_mib: tuple[float | None, float | None]
    memory_verdict: str | None  # "more", "less" or "no difference"; None where it was not measured in both

    def to_json(self) -> dict[str, Any]:
        """The point as an entry of ``comparison.points``."""
        return {
            "num_workers": self.num_workers,
            "samples_per_s_ratio": {"median": self.ratio.median, "ci95": [self.ratio.lo, self.ratio.hi]},
            "verdict": self.verdict,
            "pss_per_worker_mib": dict(zip(("here", "there"), self.pss_mib, strict=True)),
            "uss_per_worker_mib": dict(zip(("here", "there"), self.uss_mib, strict=True)),
            "memory_verdict": self.memory_verdict,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A sweep against a baseline."""

    baseline: str
    differences: tuple[Difference, ...]  # what keeps the two from being compared
    notes: tuple[Difference, ...]  # what differs and may
    points: tuple[PointComparison, ...]  # none where they are not comparable
    unmatched: tuple[int, ...]  # numbers of workers that the baseline lacks

    @property
    def comparable(self) -> bool:
        """Whether the figures of the two say anything about each other."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """The comparison as ``comparison``."""
        return {
            "baseline": self.baseline,
            "comparable": self.comparable,
            "differences": [asdict(difference) for difference in self.differences],
            "notes": [asdict(note) for note in self.notes],
            "points": [point.to_json() for point in self.points],
            "unmatched_num_workers": list(self.unmatched),
        }


def compare(result: SweepResult, baseline: Baseline, *, seed: int = 0) -> Comparison:
    """A sweep against a stored one.

    The interval of a ratio holds what moved within the two sweeps, not what differs from one hour to the next (a page
    cache, a temperature, a neighbour): a second baseline taken under the same conditions shows how much that is.

    Args:
        result: Here.
        baseline: There.
        seed: Of the bootstrap.
    """
    document = result.to_json()
    differences = _differences(document, baseline.document, _IDENTITY)
    matched = [point for point in result.points if point.num_workers in baseline.points]
    return Comparison(
        baseline=baseline.name,
        differences=differences,
        notes=_differences(document, baseline.document, {"config": ("config",), "stack": ("stack",)}),
        points=()
        if differences
        else tuple(
            _compare_point(point, baseline.points[point.num_workers], result.batch_size, seed) for point in matched
        ),
        unmatched=tuple(point.num_workers for point in result.points if point not in matched),
    )


def _differences(
    here: Mapping[str, Any], there: Mapping[str, Any], fields: Mapping[str, tuple[str, ...]]
) -> tuple[Difference, ...]:
    found = []
    for title, path in fields.items():
        mine, its = _at(here, path), _at(there, path)
        if mine == its or (title == "RAM" and _is_near(mine, its)):
            continue
        found.append(Difference(title, _spelled(title, mine), _spelled(title, its)))
    return tuple(found)


def _at(document: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = document
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _is_near(mine: Any, its: Any) -> bool:
    both = isinstance(mine, int | float) and isinstance(its, int | float)
    return both and abs(mine - its) <= _RAM_TOLERANCE * mine


def _spelled(title: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if title == "RAM" and isinstance(value, int | float):
        return f"{value / 2**30:.1f} GiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _compare_point(here: PointResult, there: OldPoint, batch_size: int, seed: int) -> PointComparison:
    def rates(intervals: Sequence[Sequence[float]]) -> list[Any]:
        return [block_rates(one, batch_size=batch_size, num_workers=here.num_workers) for one in intervals]

    ratio = median_ratio(rates(here.intervals_s), rates(there.intervals_s), seed=seed)
    return PointComparison(
        num_workers=here.num_workers,
        here=here.samples_per_s,
        there=there.samples_per_s,
        ratio=ratio,
        verdict=speed_verdict(ratio),
        pss_mib=(here.pss_mib, there.pss_mib),
        uss_mib=(here.uss_mib, there.uss_mib),
        memory_verdict=memory_verdict((here.pss_mib, there.pss_mib), (here.uss_mib, there.uss_mib)),
    )


def speed_verdict(ratio: Estimate) -> str:
    """``faster``, ``slower``, or ``no difference``: the interval holds 1, or the ratio is within ``NOISE`` of it."""
    if ratio.lo <= 1 <= ratio.hi or abs(ratio.median - 1) <= NOISE:
        return "no difference"
    return "faster" if ratio.median > 1 else "slower"


def memory_verdict(
    pss_mib: tuple[float | None, float | None], uss_mib: tuple[float | None, float | None]
) -> str | None:
    """``more``, ``less``, or ``no difference`` within what peaks differ by anyway; None where nothing is known.

    A worker's PSS falls when any process on the machine maps the same libraries, by tens of MiB; its USS misses what
    workers share with each other. So a difference is one only where neither denies it.

    Args:
        pss_mib: A worker's, here and there.
        uss_mib: Likewise.
    """
    verdicts = {
        _size_verdict(here, there) for here, there in (pss_mib, uss_mib) if here is not None and there is not None
    }
    if not verdicts:
        return None
    return verdicts.pop() if len(verdicts) == 1 else "no difference"


def _size_verdict(here: float, there: float) -> str:
    if abs(here - there) <= max(MEMORY_NOISE_MIB, MEMORY_NOISE * there):
        return "no difference"
    return "more" if here > there else "less"
