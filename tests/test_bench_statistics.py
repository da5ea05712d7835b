import numpy as np
import pytest

from bench.statistics import (
    MIN_RESAMPLED,
    Estimate,
    block_rates,
    median_interval,
    percentiles,
    rounds_apart,
    turn_durations,
    turn_outliers,
    warmup_batches,
)


def test_interval_covers_the_true_median_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        found = median_interval(rng.lognormal(np.log(400), 0.05, size=40))
        covered += found.lo <= 400 <= found.hi
    # 300 trials at 95 % have a standard deviation of 1.3 %; the percentile bootstrap of a median is a little off 95 %.
    assert 0.90 <= covered / 300 <= 0.99


def test_interval_narrows_with_the_root_of_the_number_of_values() -> None:
    rng = np.random.default_rng(0)
    few, many = median_interval(rng.normal(100, 5, 50)), median_interval(rng.normal(100, 5, 5000))
    assert (few.hi - few.lo) / (many.hi - many.lo) == pytest.approx(10, rel=0.5)
    # Asymptotically the median's standard error is sigma * sqrt(pi / 2 / n).
    assert many.hi - many.lo == pytest.approx(2 * 1.96 * 5 * np.sqrt(np.pi / 2 / 5000), rel=0.2)


def test_rounds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    slow, fast = rng.normal(180, 1, 20), rng.normal(240, 1, 20)
    mixed = np.concatenate([slow[:10], fast[:10]])
    apart = median_interval(slow, fast)
    assert apart.lo < 182
    assert apart.hi > 238
    agreeing = median_interval(mixed, mixed[::-1])
    assert agreeing.median == pytest.approx(apart.median, rel=0.02)
    same = median_interval(slow, slow + 0.1)
    assert same.hi - same.lo < 3


def test_same_values_and_seed_give_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(100, 5, 501)
    assert median_interval(values, seed=7) == median_interval(values, seed=7)
    assert median_interval(values, seed=7) != median_interval(values, seed=8)


def test_few_values_give_their_range() -> None:
    values = [10.0, 14.0, 11.0, 12.0, 13.0]
    assert len(values) < MIN_RESAMPLED
    assert median_interval(values) == Estimate(12.0, 10.0, 14.0)
    with pytest.raises(ValueError, match="at least one value"):
        median_interval([])


def test_estimate_reads_with_sensible_digits() -> None:
    assert str(Estimate(412.3, 405.1, 419.4)) == "412 [405, 419]"
    assert str(Estimate(41.23, 40.5, 41.9)) == "41.2 [40.5, 41.9]"
    assert Estimate(200.0, 190.0, 210.0).relative_half_width == pytest.approx(0.05)


def test_bunched_intervals_give_the_true_rate_wherever_they_begin() -> None:
    # 4 workers, each needing 0.4 s for a batch of 8, all at once: 80 samples/s; the median interval would say 800 000.
    bunched = [0.4 - 3e-5, 1e-5, 1e-5, 1e-5] * 10
    assert 8 / np.median(bunched) == pytest.approx(800_000)
    for start in range(4):
        rates = block_rates(bunched[start:], batch_size=8, num_workers=4)
        assert len(rates) >= 9
        assert rates == pytest.approx(np.full(len(rates), 80.0))


def test_blocks_are_whole_turns_and_long_enough() -> None:
    # A turn of 2 takes 0.1 s; three of them reach 0.25 s; 10 turns are 3 blocks and a rest.
    rates = block_rates([0.06, 0.04] * 10, batch_size=5, num_workers=2, block_s=0.25)
    assert rates == pytest.approx([100.0] * 3)
    assert block_rates([0.01], batch_size=5, num_workers=0) == pytest.approx([500.0])  # shorter, but all there is
    assert block_rates([0.01], batch_size=5, num_workers=2).size == 0  # not even a turn


def test_turns_are_whole() -> None:
    assert turn_durations([0.3, 0.1, 0.2, 0.2, 0.9], 2) == pytest.approx([0.4, 0.4])
    assert turn_durations([0.3, 0.1], 0) == pytest.approx([0.3, 0.1])
    assert turn_durations([0.3], 2).size == 0


def test_bunched_intervals_have_no_outliers_and_a_stalled_turn_is_one() -> None:
    # Of the intervals of 4 workers three quarters are nothing: by themselves a quarter of them were severe outliers.
    rng = np.random.default_rng(0)
    rounds = [[x for turn in rng.uniform(0.38, 0.42, 50) for x in (turn, 1e-5, 1e-5, 1e-5)] for _ in range(2)]
    quiet = turn_outliers(rounds, 4)
    assert (quiet.mild, quiet.severe, quiet.turns, quiet.excess_share) == (0, 0, 100, 0.0)
    assert turn_outliers(rounds, 1).severe > 90
    rounds[1][8:8] = [3.4, 0.0, 0.0, 0.0]
    stalled = turn_outliers(rounds, 4)
    assert (stalled.mild, stalled.severe, stalled.turns) == (0, 1, 101)
    assert stalled.excess_share == pytest.approx(3.0 / 43.4, rel=0.02)


def test_tukeys_fences_are_where_they_are_said_to_be() -> None:
    # Quartiles 2 and 4, whatever is added: mild from 4 + 1.5 * 2 = 7, severe from 4 + 3 * 2 = 10.
    box = [1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 4.0, 5.0] * 20
    for added, expected in ((6.9, (0, 0)), (7.1, (1, 0)), (9.9, (1, 0)), (10.1, (0, 1)), (0.0, (0, 0))):
        found = turn_outliers([[*box, added]], 0)
        assert (found.mild, found.severe) == expected


def test_fast_outliers_are_counted_and_cost_no_time() -> None:
    found = turn_outliers([[0.100 + 0.0001 * (i % 5) for i in range(50)] + [0.01]], 1)
    assert (found.mild, found.severe, found.excess_share) == (0, 1, 0.0)


def test_no_whole_turn_has_no_outliers() -> None:
    assert turn_outliers([[0.1]], 4).turns == 0
    assert turn_outliers([], 4).turns == 0


def test_rounds_lie_apart_only_beyond_their_intervals() -> None:
    rng = np.random.default_rng(0)
    slow, fast = rng.normal(180, 3, 20), rng.normal(200, 3, 20)
    medians = rounds_apart(fast, slow, fast)
    assert medians == pytest.approx((np.median(fast), np.median(slow), np.median(fast)))
    assert rounds_apart(slow, slow[::-1] + 0.5) is None
    assert rounds_apart(slow) is None
    assert rounds_apart(slow[:3], fast) is None  # three values have no interval


def test_percentiles_are_of_the_raw_intervals() -> None:
    assert percentiles(np.arange(1, 102) / 1000) == pytest.approx({"p50": 0.051, "p95": 0.096, "p99": 0.1})


def test_warmup_is_all_that_can_have_been_prefetched() -> None:
    assert [warmup_batches(n, 2) for n in (0, 1, 8)] == [1, 2, 16]
