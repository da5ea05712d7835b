"""What workers take of RAM and descriptors: growth with its interval, limits, and who is refused."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from loader_datasets import Numbers
from sweep_sample import point, sweep_result

import bench
from bench.decision import decide
from bench.known_datasets import Holding, Latency
from bench.loader_slice import batch_nbytes
from bench.memory_outlook import outlook
from bench.notes import growth_text, notes
from bench.results import MemoryBudget
from bench.worker_limits import WorkerLimits, limits_here
from preflight.data.loader import BatchLoader
from preflight.data.pickling import COUNTED_BYTES, pickled_bytes, unpicklable_part
from preflight.errors import PreflightError
from preflight.telemetry.descriptors import open_descriptors
from preflight.telemetry.growth import LASTING_S, MIN_GROWTH_S, growth, student_quantile
from preflight.telemetry.worker_jax import has_gpu, has_jax

MIB = 1 << 20
ROOMY = MemoryBudget(baseline_mib=400.0, per_worker_mib=130.0, limit_mib=8192.0, limit_source="MemAvailable")


def autoregressive(rng, correlation, size):
    values = np.zeros(size)
    for n in range(1, size):
        values[n] = correlation * values[n - 1] + rng.normal()
    return values


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1e9, 1.960)])
def test_students_quantile_is_that_of_the_tables(freedom, quantile):
    assert student_quantile(freedom) == pytest.approx(quantile, rel=0.01)


def test_the_interval_of_a_slope_holds_for_samples_that_depend_on_their_neighbours():
    rng, times = np.random.default_rng(0), np.arange(0, 10, 0.5)
    covered = []
    for _ in range(300):
        series = [(times, 3.0 * times + autoregressive(rng, 0.6, times.size)) for _ in range(3)]
        low, high = growth(series).ci95
        covered.append(low <= 3.0 <= high)
    # Of independent samples' intervals three quarters would hold; 95 % of these are to, and some way off is allowed.
    assert 0.88 < np.mean(covered) <= 1.0


def test_a_leak_lasts_and_a_cache_that_fills_does_not():
    rng, times = np.random.default_rng(1), np.arange(0, LASTING_S + 1, 0.5)
    noise = rng.normal(0, 0.2, times.size)
    leak = growth([(times, 5.0 * times + noise)])
    assert leak.lasting is True
    assert leak.slope == pytest.approx(5.0, rel=0.1)
    cache = growth([(times, 20.0 * np.minimum(times, 3.0) + noise)])
    assert cache.slope > 1
    assert cache.lasting is False
    level = growth([(times, noise)])
    assert level.ci95[0] < 0 < level.ci95[1]
    assert level.lasting is False


def test_whether_growth_lasts_is_not_told_from_short_slices():
    times = np.arange(0, 6, 0.5)
    noise = np.random.default_rng(2).normal(0, 0.2, times.size)
    found = growth([(times, 5.0 * times + noise)] * 3)
    assert found.ci95[0] > 0
    assert found.lasting is None
    one = dataclasses.replace(growing(), growth_lasting=None)
    ahead = outlook(one, ROOMY, epoch_samples=12_000)
    assert (ahead.growing, ahead.epoch_peak_mib, ahead.limit_min) == (None, None, None)
    assert growth_text(one, ahead) == (
        "2 workers: +100 [+80, +120] MiB/min a worker at first; whether they go on growing was not seen in 15 s, over "
        "all rounds"
    )


def test_growth_is_not_told_from_too_short_a_time():
    times = np.arange(0, MIN_GROWTH_S, 0.5)
    assert growth([(times, 5.0 * times)]) is None
    assert growth([]) is None
    assert growth([([0.0, 9.0], [1.0, 2.0])]) is None  # two samples have no interval


def growing(**changes):
    fields = {"growth_per_min_mib": 100.0, "growth_error_mib": 10.0, "growth_ci95_mib": (80.0, 120.0)}
    return dataclasses.replace(point(2, 100.0), growth_lasting=True, watched_min=0.25, **{**fields, **changes})


def test_growth_is_extrapolated_to_the_epoch_and_to_the_limit():
    # Held: 400 of the parent, 2 x 120 of the workers, 10 that wait.
    ahead = outlook(growing(), ROOMY, epoch_samples=12_000)
    assert ahead.growing is True
    assert ahead.epoch_min == pytest.approx(12_000 / growing().samples_per_s.median / 60)
    assert ahead.epoch_peak_mib == pytest.approx(650 + 200 * (ahead.epoch_min - 0.25))
    assert ahead.limit_min == pytest.approx((8192 - 650) / 200)
    assert (ahead.limit_earliest_min, ahead.limit_latest_min) == pytest.approx(((8192 - 650) / 240, (8192 - 650) / 160))
    text = notes(sweep_result(growing(), memory=ROOMY, epoch_samples=12_000))[-1]
    assert text.startswith(
        "Growth: 2 workers: +100 [+80, +120] MiB/min a worker, with the parent 1000 MiB at the end of"
    )
    assert text.endswith("the limit is reached after 38 min at this rate.")


def test_what_does_not_grow_is_not_extrapolated():
    still = outlook(dataclasses.replace(growing(), growth_lasting=False), ROOMY, epoch_samples=12_000)
    assert (still.growing, still.epoch_peak_mib, still.limit_min) == (False, 650.0, None)
    unknown = outlook(point(2, 100.0), ROOMY, epoch_samples=12_000)
    assert (unknown.growing, unknown.epoch_peak_mib) == (None, None)
    assert outlook(point(0, 100.0), ROOMY) is None


def limits(**changes):
    fields = {"prefetch_factor": 2, "batch_bytes": 10 * MIB, "descriptors": 20}
    return WorkerLimits(**{**fields, "descriptor_limit": 1024, "worker_descriptors": 30, **changes})


def test_descriptors_limit_the_workers():
    assert limits().max_workers_by() == {"descriptors": 140}
    few = limits(descriptor_limit=64)
    assert few.max_workers_by() == {"descriptors": 2}
    assert few.refusal(2) is None
    assert few.refusal(3) == (
        "the parent needs up to 65 file descriptors for their pipes and batches, and may open 64 (ulimit -n)"
    )
    assert few.workers_files_refusal() is None
    assert limits(descriptor_limit=40).workers_files_refusal() == (
        "a worker has 30 files open and keeps up to 16 videos more, and may open 40 (ulimit -n)"
    )


def test_the_decision_takes_the_limit_that_binds_first_and_names_it():
    budget = dataclasses.replace(ROOMY, limits=limits(descriptor_limit=64))
    assert (budget.max_workers, budget.binds_first) == (59, "descriptors")
    points = [point(2, 200.0), point(4, 400.0)]
    number, reason = decide(points, memory=budget, usable_cpus=8)
    assert number == 2
    assert reason.startswith("2 workers: the fastest that fits, ")
    assert reason.endswith(
        "4 workers do not fit: the parent needs up to 72 file descriptors for their pipes and batches, and may open 64 "
        "(ulimit -n)."
    )
    line = notes(sweep_result(*points, memory=budget))[0]
    assert line == ("File descriptors: 64 (ulimit -n) are enough for 2 workers: this binds before RAM does.")


def few_descriptors(monkeypatch, more):
    """The sweep believes that this process may open so many files more."""
    module = sys.modules["bench.sweep"]  # `bench.sweep` itself is the function
    limit = open_descriptors() + more
    monkeypatch.setattr(
        module, "limits_here", lambda factor: dataclasses.replace(limits_here(factor), descriptor_limit=limit)
    )


def test_workers_that_the_descriptors_do_not_suffice_for_are_left_out(monkeypatch):
    few_descriptors(monkeypatch, 60)
    result = bench.sweep(Latency(0.002), batch_size=8, workers=(1, 60), max_seconds=0.8, rounds=1)
    assert [one.num_workers for one in result.points] == [1]
    assert "60 workers were not measured: the parent needs up to " in result.reason
    assert result.memory.binds_first == "descriptors"
    assert result.memory.limits.worker_descriptors > 5
    assert result.points[0].parent_descriptors > 5
    assert result.points[0].gpu_workers == 0


def test_a_sweep_of_which_nothing_fits_says_so(monkeypatch):
    few_descriptors(monkeypatch, 10)
    with pytest.raises(PreflightError, match=r"^The loader cannot be measured with 2 workers: the parent n") as caught:
        bench.sweep(Latency(0.002), batch_size=8, workers=(2, 4), max_seconds=0.8, rounds=1)
    assert "ulimit -n 65536" in caught.value.hint


class Megabytes(Numbers):
    def __getitem__(self, index):
        return {"x": np.full(MIB, index % 251, np.uint8)}


def shared_blocks():
    """Batches in shared memory, by their inodes."""
    lines = (line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "/memfd:preflight" in line)
    sizes = {words[4]: [int(end, 16) for end in words[0].split("-")] for words in lines}
    return {inode for inode, (begin, end) in sizes.items() if end - begin == 4 * MIB}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs a procfs")
def test_what_waits_stays_within_what_was_reckoned():
    before = open_descriptors()
    with BatchLoader(Megabytes(200), batch_size=4, num_workers=2, prefetch_factor=3) as loader:
        most_blocks, most_files = 0, 0
        for _ in range(20):
            batch = next(loader)
            most_blocks = max(most_blocks, len(shared_blocks()))
            most_files = max(most_files, open_descriptors())
        assert batch_nbytes(batch) == 4 * MIB
        reckoned = WorkerLimits(prefetch_factor=3, batch_bytes=4 * MIB, descriptors=before)
    assert 2 <= most_blocks <= 2 * 3 + 2  # the one in use, and the one that takes its place
    assert most_files <= reckoned.parent_descriptors(2)


def test_an_array_stored_once_counts_once():
    once = np.broadcast_to(np.zeros((1, 100), np.float32), (8, 100))
    assert batch_nbytes({"black": once, "x": np.zeros((8, 2), np.float64)}) == 400 + 128


def test_jax_and_gpus_are_found_in_a_process(tmp_path):
    write_process(
        tmp_path, 1, maps="7f00 /lib/python3.11/site-packages/jaxlib/libjax_common.so\n", opened="/dev/nvidia0"
    )
    write_process(tmp_path, 2, maps="7f00 /lib/libtorch.so\n", opened="/dev/nvidiactl")
    assert [has_jax(pid, proc=tmp_path) for pid in (1, 2, 3)] == [True, False, None]
    assert [has_gpu(pid, proc=tmp_path) for pid in (1, 2, 3)] == [True, False, None]


def write_process(proc, pid, *, maps, opened):
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "maps").write_text(maps)
    (folder / "fd/5").symlink_to(opened)


def test_what_each_worker_is_sent_is_counted_without_a_copy():
    held = Holding(0)
    held.held = np.zeros(30 * MIB, np.uint8)
    assert pickled_bytes(held) == pytest.approx(30 * MIB, rel=0.01)
    assert pickled_bytes(lambda: None) is None
    assert COUNTED_BYTES > 30 * MIB


class Nested:
    def __init__(self, inner):
        self.length, self.inner = 40, {"files": [1, inner]}


def test_the_part_that_cannot_be_pickled_is_named():
    assert unpicklable_part(Nested(lambda: None)) == "inner['files'][1] (function)"
    assert unpicklable_part(Nested(2)) is None
    with (Path(__file__)).open() as file:
        assert unpicklable_part(Nested(file)) == "inner['files'][1] (TextIOWrapper)"
