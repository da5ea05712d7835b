"""The cost of the extended metrics: both steps train alike, the bare one computes less, the figure has an interval."""

import json

import jax
import numpy as np
import pytest
from toy_run import batch_of, toy_run

from bench.statistics import Estimate
from bench.step import BARE, StepCost, main, measure, render, within_budget
from preflight.training.mesh import make_mesh, put_batch, replicated
from preflight.training.state import first_state, state_sharding
from preflight.training.step import compile_step


@pytest.fixture(scope="module")
def cost():
    return measure(toy_run("batch_size=4", width=64), seconds=0.01)


def test_both_steps_are_timed_side_by_side(cost):
    assert [len(cost.seconds[name]) for name in ("bare", "extended")] == [6, 6]
    assert all(second > 0 for seconds in cost.seconds.values() for second in seconds)
    assert set(BARE) < set(cost.metrics)
    assert {"grad_max", "grad_mean", "update_norm", "update_ratio", "loss_std"} <= set(cost.metrics)
    document = json.loads(json.dumps(cost.to_json(), allow_nan=False))
    assert document["ratio"]["ci95"][0] <= document["ratio"]["median"] <= document["ratio"]["ci95"][1]
    assert document["raw"] == cost.seconds
    assert document["parameters"] == cost.parameters == 64 * (32 + 2 * 64 + 32) + 32
    assert "of a step" in render(cost)


def test_the_bare_step_trains_alike_and_computes_less():
    run = toy_run("batch_size=4", width=64)
    mesh = make_mesh(1, jax.devices()[:1])
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    batch = put_batch(batch_of(run), mesh)
    made, operations = {}, {}
    for name, wanted in (("bare", BARE), ("extended", None)):
        state = first_state(run, jax.random.key(0), state_sharding(run, mesh))
        step = compile_step(run, mesh, metrics=wanted).lower(key, state, batch).compile()
        made[name] = step(key, state, batch)
        operations[name] = step.as_text().count(" reduce(")
    assert set(made["bare"][1]) == set(BARE)
    assert operations["bare"] < operations["extended"]
    for a, b in zip(*(jax.tree.leaves(made[name][0]) for name in made), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    for name in BARE:
        np.testing.assert_allclose(made["bare"][1][name], made["extended"][1][name], rtol=1e-6)


@pytest.mark.parametrize(
    ("extended", "verdict", "word"),
    [(1.005, True, "within"), (1.05, False, "above"), (None, None, "neither")],
)
def test_the_verdict_is_the_intervals(extended, verdict, word):
    noise = np.random.default_rng(0).normal(1, 0.0005, 24)
    slower = noise * (extended or 1.01)
    if extended is None:
        slower = slower * np.random.default_rng(1).normal(1, 0.01, 24)
    seconds = {"bare": noise.tolist(), "extended": slower.tolist()}
    cost = StepCost(
        config="x", parameters=1, batch_size=1, device="1 x cpu", metrics=BARE, compile_s={}, seconds=seconds
    )
    assert within_budget(cost.ratio) is verdict
    assert word in render(cost)


def test_an_interval_on_both_sides_of_the_budget_is_no_verdict():
    assert within_budget(Estimate(1.01, 1.0, 1.02)) is None


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--config", "nope"], ["--set", "bogus=1"]])
def test_bad_input_is_a_sentence(words, capsys):
    try:
        code = main(words)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err
