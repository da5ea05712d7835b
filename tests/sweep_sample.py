"""Results of loader sweeps made of known batch intervals, for the tests of plots and comparisons."""

import numpy as np

from bench.results import Dataset, MemoryBudget, PointResult, SweepResult
from bench.statistics import block_rates, median_interval, percentiles

BATCH_SIZE = 8
ENVIRONMENT = {
    "python": "3.11.7",
    "platform": "linux-x86_64",
    "kernel": "6.1.0",
    "cpu": "AMD EPYC 7763",
    "cpus_usable": 4.0,
    "cpus_source": "affinity",
    "ram_bytes": 16 << 30,
    "gpus": [],
    "packages": {"robot-preflight": "0.1.0", "torch": "2.8.0", "av": "14.0.0", "numpy": "2.2.0"},
}


def point(num_workers, samples_per_s, *, seed=0, spread=0.02, pss_mib=120.0, rounds=3):
    """A point with a known rate: 40 batches a worker in each round, their times spread by a log-normal factor."""
    rng = np.random.default_rng([seed, num_workers])
    mean_s = BATCH_SIZE / samples_per_s
    intervals = [mean_s * rng.lognormal(0, spread, 40 * max(1, num_workers)) for _ in range(rounds)]
    rates = [block_rates(one, batch_size=BATCH_SIZE, num_workers=num_workers) for one in intervals]
    return PointResult(
        num_workers=num_workers,
        samples_per_s=median_interval(*rates),
        batch_interval_s=percentiles(np.concatenate(intervals)),
        first_batch_s=0.5,
        cpu_cores_used=1.0,
        pss_mib=pss_mib if num_workers else None,
        uss_mib=pss_mib / 2 if num_workers else None,
        growth_per_min_mib=None,
        growth_error_mib=None,
        queued_mib=10.0,
        parent_mib=400.0,
        intervals_s=tuple(tuple(map(float, one)) for one in intervals),
    )


def sweep_result(*points, **changes):
    """A whole result; recommends the largest number of workers."""
    fields = {
        "batch_size": BATCH_SIZE,
        "environment": ENVIRONMENT,
        "points": points,
        "demand_samples_per_s": None,
        "memory": MemoryBudget(
            baseline_mib=400.0, per_worker_mib=130.0, limit_mib=8192.0, limit_source="cgroup v2 memory.max (/box)"
        ),
        "recommended_num_workers": points[-1].num_workers,
        "reason": "the only one",
        "config": "g1",
        "stack": "native",
        "dataset": Dataset(frames=498, root="/data/g1", codebase_version="v3.0"),
        **changes,
    }
    return SweepResult(**fields)
