import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from healthy import APART, EXAMPLE, SOUND, context, outcome_of, the_one_that_speaks

from checks.step import METRICS, metric_problems
from preflight.runs import load_run
from preflight.runs.native import NativeRun
from preflight.training import state as training_state
from preflight.training import step

# The backward pass at small size has tests of its own and does not look at the step.
WITHOUT = (*APART, "grad.finite")
real_step = step.train_step
at = dataclasses.replace


class Straight(NativeRun):
    """A run with no other branches, for faults that are in all of them."""

    def branches(self):
        return {}


def speaks(id_, run=None):
    run = run or Straight(load_run(EXAMPLE, assignments=SOUND).config)
    return the_one_that_speaks(context(run=run), id_, without=WITHOUT)


def with_step(monkeypatch, change):
    """The step, its new state and metrics changed by `change(state, metrics)`."""
    monkeypatch.setattr(step, "train_step", lambda *args: change(*real_step(*args)))


def test_all_branches_of_a_healthy_run_are_covered():
    outcome = outcome_of("step.contract", context())
    assert outcome.status == "pass", outcome
    assert "4 branches traced at full size (as configured, resumed, ema_decay=0.99, LoRA on)" in outcome.summary
    assert outcome.measured["metrics"] == sorted(METRICS)
    leaves = outcome.measured["state_leaves"]
    assert leaves["ema_decay=0.99"] == leaves["as configured"] + 50
    assert leaves["LoRA on"] != leaves["as configured"]


def test_the_branches_of_a_lora_run_and_of_one_with_an_average_are_the_others():
    chosen = ["ema_decay=0.9", "model.paligemma_variant=dummy_lora", "model.pi05=true"]
    outcome = outcome_of("step.contract", context(*chosen))
    assert outcome.status == "pass", outcome
    assert outcome.measured["metrics"] == sorted([*METRICS, "ema_distance"])
    assert outcome.measured["branches"] == ["as configured", "resumed", "ema_decay=none", "LoRA off"]


def test_the_ema_distance_of_the_hand_made_checklist_trips_the_contract_alone(monkeypatch):
    # SEED.md, ticked there as verified: every leaf is an array, and with ema_decay set the first step raises.
    def ema_distance(new_params, ema_params):
        return optax.global_norm(jax.tree_util.tree_map(lambda x, y: x.value - y.value, new_params, ema_params))

    monkeypatch.setattr(step, "tree_distance", ema_distance)
    outcome = speaks("step.contract", load_run(EXAMPLE, assignments=SOUND))
    assert outcome.status == "fail"
    assert outcome.summary.startswith("with ema_decay=0.99 the train step cannot be traced: AttributeError: ")
    assert "jax.tree.map over NNX states hands over arrays, and an array has no .value" in outcome.summary
    assert outcome.evidence[0].startswith(f"{__file__}:")
    assert "x.value - y.value" in outcome.evidence[0]
    assert outcome.measured["problems"] == 1


@pytest.mark.parametrize(
    ("change", "summary"),
    [
        (lambda s, m: (s, m | {"loss_std": m["loss_std"][None]}), "the metric loss_std is float32[1], not a scalar"),
        (lambda s, m: (s, m | {"loss_max": m["loss_max"].astype(int)}), "the metric loss_max is int32[], not floating"),
        (lambda s, m: (s, {k: v for k, v in m.items() if k != "grad_max"}), "the metric grad_max is missing"),
        (
            lambda s, m: (s, m | {"grad_avg": m["grad_mean"]}),
            "the metric grad_avg has a name that nothing reads",
        ),
        (
            lambda s, m: (s, m | {"ema_distance": m["loss"]}),
            "the metric ema_distance is logged where no moving average is kept",
        ),
        (
            lambda s, m: (at(s, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), s.params)), m),
            "the step turns params/PaliGemma/img/Transformer/encoder_norm/bias from float32[32] into bfloat16[32]",
        ),
        (
            lambda s, m: (at(s, step=s.step + 0.5), m),
            "the step turns step from int32[] into float32[]",
        ),
        (lambda s, m: (at(s, opt_state=s.opt_state[1:]), m), "the step loses opt_state/1/"),
        (
            lambda s, m: (at(s, opt_state=(*s.opt_state, s.step)), m),
            "the step adds opt_state/2 to the",
        ),
        (lambda s, m: (s, list(m.values())), "the step's metrics are a list of"),
    ],
)
def test_a_step_that_breaks_its_contract_trips_it_alone(monkeypatch, change, summary):
    with_step(monkeypatch, change)
    outcome = speaks("step.contract")
    assert outcome.status == "fail"
    assert outcome.summary.startswith("as configured, ")
    assert summary in outcome.summary
    assert outcome.hint.commands[0].endswith("--only 'step.*'")


def test_a_fault_in_the_lora_branch_alone_is_told_with_its_name(monkeypatch):
    def only_with_adapters(state, metrics):
        paths = [str(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(state.params)]
        return state, metrics | ({"loss": metrics["loss"][None]} if any("lora" in path for path in paths) else {})

    with_step(monkeypatch, only_with_adapters)
    outcome = speaks("step.contract", load_run(EXAMPLE, assignments=SOUND))
    assert outcome.summary == "with LoRA on the metric loss is float32[1], not a scalar"


def test_a_branch_that_cannot_be_made_is_told_with_its_name():
    class NoAdapters(NativeRun):
        def create_model(self, rng):
            if self.facts.lora:
                raise ValueError("rank 0")
            return super().create_model(rng)

        def _changed(self, **changes):
            return NoAdapters(dataclasses.replace(self.config, **changes))

    run = NoAdapters(load_run(EXAMPLE, assignments=SOUND).config)
    outcome = speaks("step.contract", run)
    assert outcome.summary == "with LoRA on the train step cannot be traced: ValueError: rank 0"
    assert 'raise ValueError("rank 0")' in outcome.evidence[0]


def test_metrics_are_compared_by_name():
    scalar = jnp.float32(0)
    assert metric_problems(dict.fromkeys(METRICS, scalar), ema=False) == []
    assert metric_problems(dict.fromkeys(METRICS, scalar), ema=True) == ["the metric ema_distance is missing"]


# step.recompile


def with_first_state(monkeypatch, change):
    real = training_state.init_state
    monkeypatch.setattr(training_state, "init_state", lambda *args: change(real(*args)))


def test_a_healthy_step_is_compiled_once():
    outcome = outcome_of("step.recompile", context())
    assert outcome.status == "pass", outcome
    assert outcome.measured == {"traces": 1}
    assert "153 leaves of the state keep shape, dtype and weak type" in outcome.summary


def test_a_weakly_typed_step_counter_trips_recompile_alone(monkeypatch):
    with_first_state(monkeypatch, lambda state: at(state, step=0))
    with_step(monkeypatch, lambda s, m: (at(s, step=jnp.asarray(s.step, jnp.int32)), m))
    outcome = speaks("step.recompile")
    assert outcome.status == "warn"
    assert outcome.summary == (
        "the second step compiles the whole train step once more: step is weakly typed int32[] before a step and "
        "int32[] after it"
    )
    assert outcome.measured == {"traces_in_3_steps": 2}


def test_a_python_float_in_the_state_trips_recompile_alone(monkeypatch):
    with_first_state(monkeypatch, lambda s: at(s, opt_state=(*s.opt_state, 0.5)))

    def optimizer(run):
        real = real_optimizer(run)

        def update(grads, state, params):
            updates, new = real.update(grads, state[:-1], params)
            return updates, (*new, state[-1] * jnp.float32(0.9))

        return real._replace(update=update)

    real_optimizer = NativeRun.optimizer
    monkeypatch.setattr(NativeRun, "optimizer", optimizer)
    outcome = speaks("step.recompile")
    assert "opt_state/2 is weakly typed float32[] before a step and float32[] after it" in outcome.summary
    assert "jnp.asarray(x, jnp.float32)" in outcome.hint.text


def test_a_static_field_that_changes_compiles_every_step(monkeypatch):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Counted(training_state.TrainState):
        epoch: int = dataclasses.field(metadata={"static": True})

    with_first_state(monkeypatch, lambda s: Counted(s.step, s.params, s.opt_state, s.ema_params, epoch=0))
    with_step(monkeypatch, lambda s, m: (at(s, epoch=s.epoch + 1), m))
    outcome = speaks("step.recompile")
    assert outcome.status == "fail"
    assert outcome.summary == (
        "every step compiles anew: a static field of the state changes: epoch=0 before a step, epoch=1 after it"
    )
    assert outcome.measured == {"traces_in_3_steps": 3}
