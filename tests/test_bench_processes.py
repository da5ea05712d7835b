"""Whole processes timed from outside: their own figures, whoever starts them."""

import sys

import psutil
import pytest

from bench.processes import MIB, time_process

HOLDS = "held = bytearray(60 << 20); held[::4096] = bytes(len(held[::4096]))"


def test_the_peak_is_the_programs_and_not_that_of_whoever_starts_it():
    ours = psutil.Process().memory_info().rss / MIB
    empty, holding = (time_process([sys.executable, "-ISc", code], runs=1) for code in ("pass", HOLDS))
    assert empty.peak_rss_mib < 40 < ours
    assert 55 < holding.peak_rss_mib - empty.peak_rss_mib < 70  # an empty one has touched some of that already
    assert all(0 < second < 30 for second in (*empty.wall_s, *holding.wall_s))


def test_each_counted_run_is_timed():
    assert len(time_process(["true"], runs=3).wall_s) == 3


def test_a_command_that_fails_ends_it_with_its_words():
    code = "import sys; print('who is there', file=sys.stderr); sys.exit(7)"
    with pytest.raises(RuntimeError, match=r"exited with 7: who is there"):
        time_process([sys.executable, "-ISc", code])
    assert time_process([sys.executable, "-ISc", code], runs=1, codes=(7,)).wall_s
