"""A run as the watch sees it: records and samples of telemetry, healthy unless a test changes something."""

import json
from pathlib import Path

import numpy as np

from preflight.training.forecast import Forecast
from preflight.training.watch import Record, Watch

DEMO = Path(__file__).parent / "data" / "demo_run"
GIB = float(2**30)
FORECAST = Forecast(steps_per_sec=(9.5, 10.5), data_wait=(0.0, 0.06), checkpoint_bytes=48 * GIB)
# Functions of the step, with a generator for their noise; the first steps of a fine-tune are wild.
METRICS = {
    "loss": lambda step, rng: (0.02 + 0.05 / (1 + step / 300)) * rng.lognormal(0, 0.2),
    "grad_norm": lambda step, rng: (5e4 / 20**step if step < 5 else 1.0) * rng.lognormal(0, 0.3),
    "grad_max": lambda step, rng: (6e3 / 20**step if step < 5 else 0.5) * rng.lognormal(0, 0.5),
    "update_ratio": lambda step, rng: 1e-3 * rng.lognormal(0, 0.2),
}
# Likewise, of the seconds since the start.
MACHINE = {
    "busy": lambda s, rng: 97 - rng.integers(0, 4) if rng.random() > 0.03 else 0,  # a save now and then
    "reasons": lambda s, rng: ["sw_power_cap"],
    # Workers' decoders and caches fill at first.
    "workers": lambda s, rng: 8 * 2e8 + 2e8 * (1 - np.exp(-s / 10)) + rng.normal(0, 3e6),
    "available": lambda s, rng: 60 * GIB,
    "free": lambda s, rng: 900 * GIB,
}
CLOCKS = {"pace": lambda step: 10.0, "data": lambda step: 0.04, "host": lambda step: 0.02}


def fly(watch, steps, *, every=50, start=0, seed=0, period_s=2.0, **changes):
    """Every alert of a run of so many steps; `changes` are functions in place of the healthy ones, by name."""
    rng = np.random.default_rng(seed)
    metrics, machine, clocks = (
        {name: changes.get(name, healthy) for name, healthy in kind.items()} for kind in (METRICS, MACHINE, CLOCKS)
    )
    assert changes.keys() <= metrics.keys() | machine.keys() | clocks.keys()
    alerts, now, sampled = [], 0.0, 0.0
    for first, last in intervals(start, steps, every):
        numbers = range(first, last + 1)
        each = {name: np.array([float(value(step, rng)) for step in numbers]) for name, value in metrics.items()}
        elapsed = sum(1 / clocks["pace"](step) for step in numbers)
        while sampled < now + elapsed:
            alerts += watch.sample(sample(sampled, rng, machine))
            sampled += period_s
        now += elapsed
        waits = {f"{key}_s": elapsed * clocks[name](last) for key, name in (("data_wait", "data"), ("host", "host"))}
        timed = {} if first == start else {"elapsed_s": elapsed, **waits}
        alerts += watch.look(Record(first_step=first, last_step=last, each=each, **timed))
    return alerts


def intervals(start, steps, every):
    """As the loop logs: the first step alone, then up to each multiple of the interval, and the last."""
    firsts, first = [], start
    for step in range(start, steps):
        if step == start or step % every == 0 or step == steps - 1:
            firsts.append((first, step))
            first = step + 1
    return firsts


def sample(seconds, rng, machine):
    gpu = {
        "index": 0,
        "utilization_percent": int(machine["busy"](seconds, rng)),
        "throttle_reasons": machine["reasons"](seconds, rng),
    }
    return {
        "time": 1.7e9 + seconds,
        "workers": {"count": 8, "pss_bytes": int(machine["workers"](seconds, rng))},
        "host_memory": {"available_bytes": int(machine["available"](seconds, rng)), "limit_bytes": 128 * GIB},
        "disk": {"free_bytes": int(machine["free"](seconds, rng))},
        "gpus": [gpu] if machine["busy"](seconds, rng) is not None else [],
    }


def watch(steps, settings=None, forecast=FORECAST, gpus=(0,), **arguments):
    return Watch(settings, forecast, num_train_steps=steps, gpus=gpus, **arguments)


def demo_run():
    """The files of a real demo run: its records, with one value for each interval, and its samples."""
    records = [json.loads(line) for line in (DEMO / "metrics.jsonl").read_text().splitlines()]
    return records, [json.loads(line) for line in (DEMO / "telemetry.jsonl").read_text().splitlines()]
