"""`memory.workers` on sweeps of known figures: each limit trips it, and is named."""

import dataclasses
import json

import pytest
from healthy import context
from sweep_sample import point, sweep_result

from bench.results import MemoryBudget
from bench.worker_limits import WorkerLimits
from checks.memory_workers import CHECK

MIB, GIB = 1 << 20, 1 << 30
LIMITS = WorkerLimits(
    prefetch_factor=2,
    batch_bytes=10 * MIB,
    descriptors=20,
    descriptor_limit=1024,
    worker_descriptors=30,
)
BUDGET = MemoryBudget(
    baseline_mib=400.0, per_worker_mib=130.0, limit_mib=8192.0, limit_source="MemAvailable", limits=LIMITS
)
# 498 frames, batches of 2, 1245 steps: 2490 samples.
RUN = ("num_workers=4", "batch_size=2")


def spoken(own=None, *, budget=BUDGET, **changes):
    checked = context(*RUN)
    own = own or point(4, 100.0)
    result = sweep_result(own, memory=budget, epoch_samples=498, **changes)
    checked.once("loader-sweep", lambda: result)
    outcome = CHECK.run(checked)
    assert json.dumps(dict(outcome.measured))
    return outcome


def growing(per_min_mib):
    return dataclasses.replace(
        point(4, 100.0),
        growth_per_min_mib=per_min_mib,
        growth_error_mib=per_min_mib / 10,
        growth_ci95_mib=(0.8 * per_min_mib, 1.2 * per_min_mib),
        growth_lasting=True,
        watched_min=0.5,
    )


def without(**changes):
    return dataclasses.replace(BUDGET, limits=dataclasses.replace(LIMITS, **changes))


def test_workers_that_fit_pass_and_say_that_growth_was_not_measured():
    outcome = spoken()
    assert outcome.status == "pass"
    assert outcome.summary.startswith("4 workers hold 0.48 GiB (120 MiB PSS each and their waiting batches), with the")
    (line,) = outcome.evidence
    assert line.startswith("growth was not measured in 0 s after warm-up; this does: preflight bench-loader ")
    assert line.endswith("--workers 4 --max-seconds 60")
    assert outcome.measured["max_workers_by"] == {"ram": 59, "descriptors": 140}


def test_a_leak_that_meets_the_limit_within_the_run_is_warned_of():
    outcome = spoken(growing(20_000.0))  # 80 GB/min, of 7.3 GiB
    assert outcome.status == "warn"
    assert "they grow by 20,000 MiB/min each, and reach the limit after 0 min at this rate, at about step " in (
        outcome.summary
    )
    assert outcome.summary.endswith(" of 1,245")
    assert outcome.hint.commands[0].endswith("--max-seconds 60")


def test_growth_that_the_run_does_not_live_to_see_passes_with_its_figures():
    outcome = spoken(growing(10.0))
    assert outcome.status == "pass"
    assert outcome.evidence[0].startswith("growth: 4 workers: +10 [+8, +12] MiB/min a worker, with the parent ")
    assert outcome.measured["growth_ci95_mib"] == [8.0, 12.0]
    assert outcome.measured["minutes_to_limit"] == pytest.approx((8192 - 890) / 40, abs=0.1)


def test_growth_that_does_not_last_is_called_none():
    outcome = spoken(dataclasses.replace(growing(20_000.0), growth_lasting=False))
    assert outcome.status == "pass"
    assert outcome.evidence[0].startswith("growth: 4 workers did not grow: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"descriptor_limit": 50, "worker_descriptors": 12}, "the parent needs up to 72 file descriptors for their"),
        ({"descriptor_limit": 75, "worker_descriptors": 65}, "a worker has 65 files open and keeps up to 16 videos"),
    ],
)
def test_few_file_descriptors_fail(changes, said):
    outcome = spoken(budget=without(**changes))
    assert outcome.status == "fail"
    assert said in outcome.summary
    assert outcome.hint.commands[0] == "ulimit -n 65536"


def test_workers_that_were_refused_name_the_limit():
    budget = without(descriptor_limit=60)
    outcome = spoken(point(2, 100.0), budget=budget, not_measured={4: budget.limits.refusal(4)})
    assert outcome.status == "fail"
    assert outcome.summary.startswith("4 workers were not even started: the parent needs up to 72 file descr")
    assert outcome.hint.commands[0] == "ulimit -n 65536"
    assert outcome.hint.commands[1].endswith("--set num_workers=2")


def test_workers_on_a_gpu_are_warned_of_and_jax_is_told():
    outcome = spoken(dataclasses.replace(point(4, 100.0), gpu_workers=4, jax_workers=4))
    assert outcome.status == "warn"
    assert outcome.summary.endswith("4 of them opened a GPU, of which each takes hundreds of MiB")
    assert "numpy" in outcome.hint.text
    assert outcome.evidence[-1].startswith("4 of 4 workers loaded JAX; ")


def test_a_large_dataset_in_every_worker_is_told():
    outcome = spoken(budget=dataclasses.replace(BUDGET, pickled_mib=300.0))
    assert outcome.status == "pass"
    assert outcome.evidence[-1].startswith("every worker is sent a copy of the dataset, 300 MiB when pickled")
