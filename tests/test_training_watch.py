"""Each rule of the watch speaks of its fault, and no other does; a healthy run hears nothing."""

import json
import types

import jax
import numpy as np
import pytest
from flown import DEMO, GIB, METRICS, demo_run, fly, watch
from hypothesis import given, settings
from hypothesis import strategies as st

from preflight.config.watch import read_watch
from preflight.config.watch_rules import RULES
from preflight.training.alerts import AlertLog
from preflight.training.forecast import Forecast
from preflight.training.latch import Latch, StepWindow
from preflight.training.own_gpus import own_gpus
from preflight.training.watch import Record, Watch

LONG = 1_000_000  # the run's length, of which the tests fly the first part
AT = 1500  # the step at which a fault begins


def from_step(value, at=AT, name=None):
    """A metric that is something else from a step on."""
    return lambda step, rng: value if step >= at else METRICS[name](step, rng)


def since(value, otherwise, at=AT):
    """A clock, likewise."""
    return lambda step: value if step >= at else otherwise


def after_s(value, otherwise, at=150):
    """Something of the machine, likewise, by the second."""
    return lambda s, rng: value(s - at) if s >= at else otherwise


# The fault, the steps to fly, what it changes, and words of the message.
FAULTS = [
    ("loss.finite", 2000, {"loss": from_step(np.nan, name="loss")}, ["loss became NaN at step 1500", "to step 1499"]),
    ("grad.finite", 2000, {"grad_norm": from_step(np.inf, name="grad_norm")}, ["grad_norm became infinite at step 15"]),
    ("grad.max", 2000, {"grad_max": from_step(310.0, name="grad_max")}, ["grad_max was above 100", "310 at worst"]),
    ("grad.norm", 2000, {"grad_norm": from_step(25.0, name="grad_norm")}, ["outside 0.1 … 10", "25 at worst"]),
    ("grad.norm", 2000, {"grad_norm": from_step(0.01, name="grad_norm")}, ["outside 0.1 … 10", "0.01 at worst"]),
    ("update.ratio", 2000, {"update_ratio": from_step(0.03, name="update_ratio")}, ["above 0.01", "0.03 at worst"]),
    ("loss.range", 500, {"loss": lambda step, rng: 2.0 * METRICS["loss"](step, rng) / 0.07}, ["outside 0.001 … 0.1"]),
    ("loss.trend", 2000, {"loss": lambda step, rng: 0.05 * rng.lognormal(0, 0.2)}, ["has not fallen by step 1000"]),
    ("loss.rising", 6000, {"loss": from_step(0.09, 3500, "loss")}, ["median loss of steps 3000 to 3999"]),
    ("slow.data", 4000, {"pace": since(7.0, 10.0), "data": since(0.33, 0.04)}, ["wait for their batch", "at most 6%"]),
    ("slow.data", 4000, {"data": since(0.25, 0.04)}, ["steps wait for their batch 2"]),
    ("slow.data", 4000, {"busy": after_s(lambda s: 83, 97), "data": since(0.15, 0.04)}, ["in use 83 %", "steps wait"]),
    ("slow.host", 4000, {"pace": since(7.0, 10.0), "host": since(0.35, 0.02)}, ["the host's own work"]),
    ("slow.host", 4000, {"busy": after_s(lambda s: 60, 97)}, ["in use 60 %", "wait for data only 4%"]),
    (
        "slow.throttled", 4000,
        {"pace": since(8.0, 10.0), "reasons": after_s(lambda s: ["sw_power_cap", "hw_thermal_slowdown"], [])},
        ["clocks are lowered", "(hw_thermal_slowdown)"],
    ),
    ("slow.pace", 4000, {"pace": since(8.0, 10.0)}, ["steps/s, and the checklist foretold 9.5 to 10.5", "data 4%"]),
    ("memory.workers", 12_000, {"workers": lambda s, rng: 1e9 + 5e6 * s + rng.normal(0, 3e6)}, ["MiB a min", "95 %"]),
    ("disk.space", 5000, {"free": after_s(lambda s: 40 * GIB, 900 * GIB)}, ["40 GiB are free", "takes 48 GiB"]),
    ("disk.filling", 19_000, {"free": lambda s, rng: 400 * GIB - 1e8 * s + rng.normal(0, 1e6)}, ["the disk fills by"]),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "steps", "changes", "words"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_is_told_of_once_and_by_its_rule(rule, steps, changes, words):
    alerts = fly(watch(LONG), steps, **changes)
    assert [alert.rule for alert in alerts] == [rule], [str(alert) for alert in alerts]
    alert = alerts[0]
    assert alert.severity == RULES[rule].severity
    assert alert.advice == RULES[rule].advice
    assert all(word in alert.message for word in words), alert.message
    # What the report reads, and any JSON reader.
    again = json.loads(json.dumps(alert.to_json(), allow_nan=False))
    assert again.keys() == {"rule", "severity", "step", "window", "message", "advice", "measured"}
    # Off, it is silent, and no other rule speaks in its place.
    assert fly(watch(LONG, read_watch("x", {rule: False})), steps, **changes) == []


def test_every_rule_is_tripped_here_or_in_the_tests_of_hangs():
    assert {fault[0] for fault in FAULTS} | {"hang"} == RULES.keys()


@pytest.mark.parametrize("every", [1, 7, 100, 500])
def test_a_healthy_run_hears_nothing(every):
    assert fly(watch(LONG), 6000, every=every, seed=every) == []


def test_a_healthy_run_without_a_forecast_or_a_gpu_hears_nothing():
    assert fly(watch(LONG, forecast=None), 6000, busy=lambda s, rng: 97, reasons=lambda s, rng: None) == []


def test_a_healthy_run_that_is_resumed_hears_nothing():
    # Its losses lie flat from here on: they fell before.
    flat = {"loss": lambda step, rng: 0.02 * rng.lognormal(0, 0.2)}
    assert fly(watch(LONG, start=5000), 9000, start=5000, **flat) == []
    assert fly(watch(LONG, start=700, losses=[0.07] * 10 + [0.02] * 5), 3000, start=700, **flat) == []


def test_the_demo_runs_losses_are_unusual_and_nothing_else_is():
    records, samples = demo_run()
    forecast = Forecast.read(
        json.loads((DEMO / "clearance.json").read_text()), json.loads((DEMO / "config.json").read_text())
    )
    alerts, seen, guard = [], 0, Watch(None, forecast, num_train_steps=60)
    for before, record in zip([None, *records], records, strict=False):
        while seen < len(samples) and samples[seen]["time"] <= record["time"]:
            alerts += guard.sample(samples[seen])
            seen += 1
        first = 0 if before is None else before["step"] + 1
        steps = record["step"] - first + 1
        each = {k: np.full(steps, v) for k, v in record.items() if k not in ("step", "time") and "/" not in k}
        timed = {}
        if before is not None:
            timed["elapsed_s"] = steps * record["efficiency/time_per_step"]
            timed["data_wait_s"] = steps * record["efficiency/data_wait"]
        alerts += guard.look(Record(first_step=first, last_step=record["step"], each=each, **timed))
    # Its model is a toy with fresh parameters, and its losses are above 1.
    assert [(alert.rule, alert.severity) for alert in alerts] == [("loss.range", "note")]


def test_a_fault_that_went_and_came_back_is_told_of_twice():
    explodes = {"grad_max": lambda step, rng: 310.0 if step % 1000 >= 700 else 0.5}
    alerts = fly(watch(LONG), 4000, **explodes)
    assert [alert.rule for alert in alerts] == ["grad.max"] * 4
    assert [alert.step // 1000 for alert in alerts] == [0, 1, 2, 3]


def test_a_spike_is_not_told_of():
    assert fly(watch(LONG), 3000, grad_max=lambda step, rng: 500.0 if step % 400 == 1 else 0.5) == []


def test_gradient_and_loss_that_go_together_are_one_alert_and_it_names_the_loss():
    nan = {name: from_step(np.nan, 777, name) for name in METRICS}
    alerts = fly(watch(LONG), 1000, **nan)
    assert [alert.rule for alert in alerts] == ["loss.finite"]
    assert alerts[0].window == (777, 800)
    assert alerts[0].measured == {"metric": "loss", "first_bad_step": 777, "last_good_step": 776}


def test_a_gradient_that_goes_first_is_named_though_the_loss_follows():
    nan = {"loss": from_step(np.nan, 778, "loss"), "grad_norm": from_step(np.nan, 777, "grad_norm")}
    assert [alert.rule for alert in fly(watch(LONG), 1000, **nan)] == ["grad.finite"]


def test_nothing_is_good_before_a_first_step_that_is_not():
    alert = fly(watch(LONG), 10, loss=lambda step, rng: np.nan)[0]
    assert alert.measured["last_good_step"] is None
    assert "no parameters before it" in alert.message


def test_only_updates_count_where_gradients_are_accumulated():
    # Step n is an update where 4 divides n + 1, the others have no size.
    ratio = lambda large: lambda step, rng: (0.03 if large and step >= AT else 1e-3) if step % 4 == 3 else 0.0  # noqa: E731
    assert fly(watch(LONG, accumulation_steps=4), 3000, update_ratio=ratio(False)) == []
    alerts = fly(watch(LONG, accumulation_steps=4), 3000, update_ratio=ratio(True))
    assert [alert.rule for alert in alerts] == ["update.ratio"]
    assert "updates from step 1503" in alerts[0].message


def test_only_the_gpus_of_the_run_count():
    guard = watch(LONG, gpus=(1,))
    idle = {"index": 0, "utilization_percent": 0, "throttle_reasons": ["hw_slowdown"]}
    real = guard.sample
    guard.sample = lambda sample: real(sample | {"gpus": [idle, *({**gpu, "index": 1} for gpu in sample["gpus"])]})
    assert fly(guard, 4000) == []
    assert [alert.rule for alert in fly(watch(LONG), 4000, busy=lambda s, rng: 0)] == ["slow.host"]


@pytest.mark.parametrize(
    ("visible", "backend", "numbers", "expected"),
    [
        (None, "gpu", [0, 1], (0, 1)),
        ("", "gpu", [0], (0,)),
        ("3, 1", "gpu", [0, 1], (3, 1)),
        ("3,1", "gpu", [1], (1,)),
        ("GPU-4d1b,GPU-77aa", "gpu", [0, 1], ()),
        ("0", "cpu", [0], ()),
    ],
)
def test_the_gpus_of_the_run_are_found(monkeypatch, visible, backend, numbers, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(local_hardware_id=n) for n in numbers])
    assert own_gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == expected


def test_a_pace_that_falls_is_told_of_without_a_forecast():
    alerts = fly(watch(LONG, forecast=None), 4000, pace=since(6.0, 10.0))
    assert [alert.rule for alert in alerts] == ["slow.pace"]
    assert "and it was 10" in alerts[0].message


def test_growth_that_the_run_outlives_or_that_is_a_step_is_not_told_of():
    slow = {"workers": lambda s, rng: 1e9 + 5e6 * s + rng.normal(0, 3e6)}
    assert fly(watch(13_000), 12_000, **slow) == []  # 60 GiB last for three hours, the run for twenty minutes
    stairs = {"workers": lambda s, rng: 1e9 + (5e8 if s > 500 else 0) + rng.normal(0, 3e6)}
    assert fly(watch(LONG), 19_000, **stairs) == []
    saves = {"free": lambda s, rng: 300 * GIB - (s // 900) * 48 * GIB}
    assert fly(watch(LONG), 19_000, **saves) == []


def test_the_time_left_is_given_with_its_interval():
    rate = 5e6
    alert = fly(watch(LONG), 12_000, workers=lambda s, rng: 1e9 + rate * s + rng.normal(0, 3e6))[0]
    low, high = alert.measured["left_s_ci95"]
    assert low < 60 * GIB / rate < high
    assert alert.measured["bytes_per_s"] == pytest.approx(rate, rel=0.02)


def test_a_save_under_way_is_no_full_disk():
    saving = {"free": lambda s, rng: 900 * GIB if s % 250 < 200 else 10 * GIB}
    assert fly(watch(LONG), 8000, **saving) == []


def test_a_checkpoint_that_came_out_larger_is_what_room_is_needed_for():
    guard = watch(LONG)
    guard.saved(1000 * 2**30)
    assert [alert.rule for alert in fly(guard, 4000)] == ["disk.space"]
    # Where no size is known, a fixed amount.
    nothing = fly(watch(LONG, forecast=None), 4000, free=lambda s, rng: 2 * GIB)
    assert nothing == []
    assert [a.rule for a in fly(watch(LONG, forecast=None), 4000, free=lambda s, rng: GIB // 2)] == ["disk.space"]


def test_samples_without_numbers_are_no_reason_to_speak_or_to_fail():
    guard = watch(LONG)
    guard.look(Record(first_step=0, last_step=0, each={"loss": np.array([0.05])}))
    empty = {"time": 1.7e9, "workers": None, "host_memory": None, "disk": {"free_bytes": None}, "gpus": []}
    unknown = {"index": 0, "utilization_percent": None, "throttle_reasons": None}
    assert guard.sample(empty) == guard.sample(empty | {"gpus": [unknown]}) == []
    assert guard.sample(empty | {"time": 1.6e9, "disk": {"free_bytes": 900 * GIB}}) == []


def test_limits_and_severities_are_the_projects():
    explodes = {"grad_max": from_step(310.0, name="grad_max")}
    loose = read_watch("x", {"grad.max": {"high": 400}})
    assert fly(watch(LONG, loose), 2000, **explodes) == []
    grave = fly(watch(LONG, read_watch("x", {"grad.max": {"severity": "stop"}})), 2000, **explodes)
    assert [alert.severity for alert in grave] == ["stop"]


def test_the_forecast_is_the_reports():
    clearance = json.loads((DEMO / "clearance.json").read_text())
    config = json.loads((DEMO / "config.json").read_text())
    assert Forecast.read(None, config) == Forecast()
    # Without a GPU no demand was foretold: what the loader could feed is a bound, and no forecast.
    forecast = Forecast.read(clearance, config)
    assert forecast.steps_per_sec is None
    assert forecast.checkpoint_bytes > 0
    for check in clearance["checks"]:
        if check["id"] == "step.roofline":
            check["measured"] = {"demand_samples_per_s": [20.0, 30.0]}
    known = Forecast.read(clearance, config)
    assert known.steps_per_sec == pytest.approx((20 / 4, 30 / 4))
    assert known.data_wait is not None


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 50), st.floats(0.02, 1.0))
@settings(max_examples=50, deadline=None)
def test_a_window_speaks_where_enough_of_it_is_bad_and_again_only_after_it_was_well(bad, window, share):
    counted = StepWindow(float(window), share)
    enough, holds = max(1.0, share * window), False
    for step, one in enumerate(bad):
        count = sum(bad[max(0, step - window + 1) : step + 1])
        spoke = counted.add(step, one)
        assert spoke == (not holds and count >= enough)
        holds = (holds or count >= enough) and count > enough / 2


@given(st.lists(st.floats(0, 3, allow_nan=False), max_size=60))
@settings(max_examples=50, deadline=None)
def test_a_latch_never_speaks_twice_without_a_half_between(levels):
    latch, lowest = Latch(), 0.0
    for level in levels:
        lowest = min(lowest, level)
        if latch.speaks(level):
            assert level >= 1
            assert lowest <= 0.5
            lowest = level


@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_however_slow_a_run_is_one_reason_is_given_at_a_time(pace, share, seed):
    rng = np.random.default_rng(seed)
    data = share * rng.random()
    changes = {
        "pace": since(10 * pace, 10.0),
        "data": since(data, 0.04),
        "host": since(share - data, 0.02),
        "busy": after_s(lambda s: int(100 * rng.random()), 97),
    }
    alerts = fly(watch(LONG), 3500, seed=seed, **changes)
    # A cause that shows later, as a GPU that idles, is said then.
    assert len({alert.step for alert in alerts}) == len(alerts) > 0


def test_the_log_waits_for_its_folder_and_for_room(tmp_path, caplog):
    alert = fly(watch(LONG), 10, loss=lambda step, rng: np.nan)[0]
    log = AlertLog()
    log.write(alert)
    log.open(tmp_path / "gone" / "alerts.jsonl")
    assert "cannot be written" in caplog.text
    log.open(tmp_path / "alerts.jsonl")
    log.write(alert)
    lines = (tmp_path / "alerts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [alert.to_json()] * 2
    assert str(alert).startswith("stop: loss.finite at step 0: loss became NaN at step 0")


def test_without_an_alert_there_is_no_file(tmp_path):
    AlertLog().open(tmp_path / "alerts.jsonl")
    assert not list(tmp_path.iterdir())
