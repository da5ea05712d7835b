"""What a point's slices saw of memory, descriptors and libraries, as the fields of a `PointResult`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.loader_slice import LoaderSlice
from bench.memory_watch import MemorySample
from preflight.telemetry.growth import growth, watched_s

MIB = float(1 << 20)


def memory_fields(num_workers: int, slices: Sequence[LoaderSlice], prefetch_factor: int) -> dict[str, Any]:
    """Fields of `bench.results.PointResult`, of all slices together.

    Args:
        num_workers: Of the point.
        slices: Each with workers of its own.
        prefetch_factor: Batches that each worker keeps ready.
    """
    samples = [sample for one in slices for sample in one.memory]
    others = _known(sample.others_pss for sample in samples)
    pss = _known(sample.workers_pss for sample in samples)
    series = [_warm(one) for one in slices] if num_workers else []
    grown = growth(series)
    if grown is not None:
        grown = grown.scaled(60 / num_workers / MIB)
    return {
        "pss_mib": max(pss) / num_workers / MIB if num_workers and pss else None,
        "uss_mib": max(sample.workers_uss for sample in samples) / num_workers / MIB
        if num_workers and samples
        else None,
        "growth_per_min_mib": None if grown is None else grown.slope,
        "growth_error_mib": None if grown is None else grown.error,
        "growth_ci95_mib": None if grown is None else grown.ci95,
        "growth_lasting": False if grown is None else grown.lasting,
        "watched_min": watched_s(series) / 60,
        "queued_mib": num_workers * prefetch_factor * max(one.batch_bytes for one in slices) / MIB,
        "parent_mib": max(others) / MIB if others else None,
        "memory_samples": tuple(tuple(_raw(sample, one.memory[0].at) for sample in one.memory) for one in slices),
        "parent_descriptors": max(_known(sample.descriptors for sample in samples), default=None),
        "worker_descriptors": max(_known(sample.worker_descriptors for sample in samples), default=None),
        "jax_workers": max(_known(sample.jax_workers for sample in samples), default=None) if num_workers else None,
        "gpu_workers": max(_known(sample.gpu_workers for sample in samples), default=None) if num_workers else None,
    }


def _warm(one: LoaderSlice) -> tuple[list[float], list[float]]:
    warm = [(s.at, s.workers_pss) for s in one.memory if s.at >= one.warm_at and s.workers_pss is not None]
    return [at for at, _ in warm], [float(pss) for _, pss in warm]


def _raw(sample: MemorySample, began: float) -> tuple[float, float | None, float, float | None]:
    pss, others = sample.workers_pss, sample.others_pss
    return (
        sample.at - began,
        None if pss is None else pss / MIB,
        sample.workers_uss / MIB,
        None if others is None else others / MIB,
    )


def _known(values: Any) -> list[int]:
    return [value for value in values if value is not None]
