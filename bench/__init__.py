"""Benchmarks: ``bench.sweep`` measures a map-style dataset's loading."""

from bench.results import MemoryBudget, PointResult, SweepResult
from bench.sweep import sweep

__all__ = ["MemoryBudget", "PointResult", "SweepResult", "sweep"]
