"""How many workers to use, and why, from measured points: a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.results import MemoryBudget, PointResult
from bench.statistics import Estimate

# Below this a difference in memory is not worth a word (MiB).
_NOTABLE_MIB = 50.0


def decide(
    points: Sequence[PointResult],
    *,
    memory: MemoryBudget,
    usable_cpus: float,
    demand_samples_per_s: float | None = None,
    demand_source: str | None = None,
    not_measured: Mapping[int, str] | None = None,
    samples: float | None = None,
) -> tuple[int, str]:
    """The number of workers to use and the reason, for a person to believe.

    The rule: of the points whose workers fit into RAM and file descriptors, the fewest workers whose
    interval reaches that of the fastest point, and, where the demand is known, whose whole interval meets it. If none
    meets the demand, the fewest that reach the fastest are taken and the reason says what is missing. Loading in the
    process itself (0 workers) makes every step wait for its batch, so it is chosen only where nothing else can be.

    Args:
        points: At least one.
        memory: What there is.
        usable_cpus: Names the cause where more workers are slower.
        demand_samples_per_s: What the training step consumes, if known.
        demand_source: Where that is from, in words.
        not_measured: Numbers of workers that were left out, and why.
        samples: How many the run will load, if known. Points are then compared by the time until the last of them,
            the wait for the first batch included: more workers that start slowly do not pay in a short run.
    """
    if not points:
        raise ValueError("a decision needs at least one point")
    ordered = sorted(points, key=lambda point: point.num_workers)
    fitting = [point for point in ordered if _fits(point, memory)]
    if not fitting:
        least = min(ordered, key=lambda point: point.workers_mib or 0.0)
        if (other := _other_refusal(least, memory)) is not None and (
            least.workers_mib or 0.0
        ) <= memory.for_workers_mib:
            return least.num_workers, f"{_workers(least)}: the least of all measured, yet {other}."
        return least.num_workers, (
            f"{_workers(least)}: the least memory of all measured, yet {_size(least.workers_mib)} where "
            f"{_size(max(0.0, memory.for_workers_mib))} is free ({memory.limit_source}); expect to run out of RAM."
        )
    candidates = [point for point in fitting if point.num_workers > 0] or fitting
    fastest = max(candidates, key=lambda point: point.samples_per_s.median)
    best = max(candidates, key=lambda point: _over_the_run(point, samples).median)
    bar = _over_the_run(best, samples).lo
    level = [point for point in candidates if _over_the_run(point, samples).hi >= bar]
    meeting = [point for point in level if _meets(point, demand_samples_per_s)]
    chosen = (meeting or level)[0]

    if best.num_workers == fastest.num_workers or samples is None:
        sentences = [_main_clause(chosen, best, ordered, memory)]
    else:
        sentences = [_short_run_clause(chosen, fastest, samples)]
    if demand_samples_per_s is not None:
        sentences.append(_demand_sentence(chosen, candidates, demand_samples_per_s, demand_source))
    slower = [
        point
        for point in candidates
        if point.num_workers > best.num_workers and point.samples_per_s.hi < best.samples_per_s.lo
    ]
    if slower:
        worst = slower[-1]
        sentences.append(
            f"More are slower: {worst.num_workers} load {worst.samples_per_s} samples/s on {usable_cpus:g} usable CPUs."
        )
    for point in ordered:
        if point not in fitting:
            sentences.append(_unfit_sentence(point, memory))
    sentences += [f"{number} workers were not measured: {why}." for number, why in (not_measured or {}).items()]
    return chosen.num_workers, " ".join(sentences)


def _fits(point: PointResult, memory: MemoryBudget) -> bool:
    return memory.refusal(point.num_workers, point.workers_mib) is None


def _other_refusal(point: PointResult, memory: MemoryBudget) -> str | None:
    return memory.refusal(point.num_workers, None)


def _unfit_sentence(point: PointResult, memory: MemoryBudget) -> str:
    if point.workers_mib is None or point.workers_mib <= memory.for_workers_mib:
        return f"{_workers(point)} do not fit: {_other_refusal(point, memory)}."
    return (
        f"{_workers(point)} would need {_size(point.workers_mib)} of RAM; "
        f"{_size(memory.for_workers_mib)} is free ({memory.limit_source})."
    )


def _meets(point: PointResult, demand: float | None) -> bool:
    return demand is None or point.samples_per_s.lo >= demand


def _over_the_run(point: PointResult, samples: float | None) -> Estimate:
    """Samples/s from the loader's start to the last of so many samples."""
    rate = point.samples_per_s
    if samples is None:
        return rate

    def slowed(per_s: float) -> float:
        return samples / (point.first_batch_s + samples / per_s)

    return Estimate(slowed(rate.median), slowed(rate.lo), slowed(rate.hi))


def _short_run_clause(chosen: PointResult, fastest: PointResult, samples: float) -> str:
    seconds = [samples / _over_the_run(point, samples).median for point in (chosen, fastest)]
    return (
        f"{_workers(chosen)}: the run's {samples:,.0f} samples are there after {seconds[0]:.0f} s, with "
        f"{fastest.num_workers} after {seconds[1]:.0f} s: they load {fastest.samples_per_s} samples/s against "
        f"{chosen.samples_per_s}, and take {fastest.first_batch_s:.1f} s to the first batch against "
        f"{chosen.first_batch_s:.1f}."
    )


def _main_clause(chosen: PointResult, best: PointResult, ordered: Sequence[PointResult], memory: MemoryBudget) -> str:
    rate = f"{chosen.samples_per_s} samples/s"
    if len(ordered) == 1:
        return f"{_workers(chosen)}: the only number measured, {rate}."
    if chosen is not best:
        clause = (
            f"{_workers(chosen)}: as fast as {best.num_workers} within the measurement's interval "
            f"({chosen.samples_per_s} against {best.samples_per_s} samples/s)"
        )
        saved = (best.workers_mib or 0.0) - (chosen.workers_mib or 0.0)
        return f"{clause}, and {_size(saved)} less RAM." if saved >= _NOTABLE_MIB else f"{clause}."
    others = [point for point in ordered if point is not chosen]
    nearest = max(others, key=lambda point: point.samples_per_s.median)
    if nearest.samples_per_s.median > chosen.samples_per_s.median and nearest.num_workers > 0:
        where = " into RAM" if (nearest.workers_mib or 0.0) > memory.for_workers_mib else ""
        return f"{_workers(chosen)}: the fastest that fits{where}, {rate}."
    clause = f"{_workers(chosen)}: the fastest measured, {rate} against {nearest.samples_per_s}"
    clause += " in the process itself" if nearest.num_workers == 0 else f" with {nearest.num_workers}"
    if nearest.num_workers == 0 and nearest.samples_per_s.median > chosen.samples_per_s.median:
        return (
            f"{_workers(chosen)}: {rate}; loading in the process itself is faster ({nearest.samples_per_s}), "
            "but then every step waits for its batch."
        )
    return clause + "."


def _demand_sentence(chosen: PointResult, candidates: Sequence[PointResult], demand: float, source: str | None) -> str:
    asked = f"{demand:.0f} samples/s" if demand >= 100 else f"{demand:.3g} samples/s"
    if source is not None:
        asked += f" ({source})"
    if not _meets(chosen, demand):
        short = 1 - chosen.samples_per_s.median / demand
        if short <= 0:
            return f"The training step asks for {asked}, which lies within the interval: it may have to wait."
        return f"The training step asks for {asked}, so it will wait for data ({short:.0%} too slow)."
    fewer = next((point for point in candidates if _meets(point, demand)), chosen)
    if fewer.num_workers < chosen.num_workers:
        saved = (chosen.workers_mib or 0.0) - (fewer.workers_mib or 0.0)
        price = f" and {_size(saved)} less RAM" if saved >= _NOTABLE_MIB else ""
        return f"The training step asks for only {asked}: {_workers(fewer)} would do ({fewer.samples_per_s}){price}."
    return f"The training step asks for {asked}."


def workers_text(number: int) -> str:
    """``1 worker``, ``2 workers``."""
    return "1 worker" if number == 1 else f"{number} workers"


def _workers(point: PointResult) -> str:
    return workers_text(point.num_workers)


def _size(mib: float | None) -> str:
    if mib is None:
        return "an unknown amount"
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
