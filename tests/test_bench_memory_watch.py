"""The memory watch: how often it reads what, on real processes."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from bench.memory_watch import MemoryWatch, sample_memory
from preflight.telemetry.growth import growth
from preflight.telemetry.memory import process_memory

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="no PSS here")

# A process with a child of its own, both hold 30 MiB; says so when they do.
HOLD = "held = bytearray(b'x') * (30 << 20); print('held', flush=True); import time; time.sleep(60)"
FAMILY = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {HOLD!r}]); {HOLD}"


@pytest.fixture
def family():
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert [process.stdout.readline() for _ in range(2)] == [b"held\n"] * 2
            yield process.pid
        finally:
            os.killpg(process.pid, 9)


def test_a_workers_children_count_with_it(family):
    sample = sample_memory((family,))
    assert sample.workers_uss > process_memory(family).uss + (30 << 20)
    assert sample.others_pss > 0
    alone = sample_memory(())
    assert (alone.workers_uss, alone.workers_pss) == (0, 0)
    assert alone.others_pss > sample.others_pss + (60 << 20)


def test_a_worker_that_is_gone_gives_no_sample():
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        pass
    assert sample_memory((process.pid,)) is None


def test_this_process_is_read_seldom_beside_workers(family):
    with MemoryWatch(lambda: (family,), period_s=60) as watch:
        deadline = time.monotonic() + 30
        while len(watch.samples) < 4 and time.monotonic() < deadline:
            watch.sample_now()
            time.sleep(0.02)
    first, *middle, last = watch.samples
    assert len(middle) >= 2
    assert first.others_pss is not None
    assert last.others_pss is not None
    assert all(sample.others_pss is None for sample in middle if sample.at - first.at < 4)
    assert all(sample.workers_pss > 60 << 20 for sample in watch.samples)


def test_this_process_is_always_read_where_it_loads():
    with MemoryWatch(tuple, period_s=60) as watch:
        deadline = time.monotonic() + 30
        while len(watch.samples) < 3 and time.monotonic() < deadline:
            watch.sample_now()
            time.sleep(0.02)
    assert len(watch.samples) >= 3
    assert all(sample.others_pss > 0 for sample in watch.samples)


def test_growth_is_that_within_rounds_whatever_their_levels():
    rng = np.random.default_rng(0)
    series = []
    for level in (100.0, 500.0, 50.0):
        times = np.sort(rng.uniform(0, 6, 12))
        series.append((times, level + 3.0 * times + rng.normal(0, 0.5, 12)))
    found = growth(series)
    assert found.slope == pytest.approx(3.0, abs=3 * found.error)
    assert 0.01 < found.error < 0.15
