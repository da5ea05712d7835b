import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from healthy import APART, EXAMPLE, SOUND, context, outcome_of, run_all, spoken, the_one_that_speaks

from checks.grad import contract_problems
from checks.grad_coverage import modules
from preflight.models.params import parameter_path
from preflight.runs import load_run
from preflight.runs.native import NativeRun
from preflight.training import step

LORA = ["model.paligemma_variant=dummy_lora", "model.action_expert_variant=dummy_lora"]


class Broken(NativeRun):
    """A run whose model went through `before`, and whose loss through `spoil`."""

    def __init__(self, spoil=lambda loss: loss, before=lambda model: model, *, config=None, assignments=()):
        super().__init__(config or load_run(EXAMPLE, assignments=[*SOUND, *assignments]).config)
        self.spoil, self.before = spoil, before

    def compute_loss(self, model, rng, batch, *, train):
        return self.spoil(super().compute_loss(self.before(model), rng, batch, train=train))

    def _changed(self, **changes):
        return Broken(self.spoil, self.before, config=dataclasses.replace(self.config, **changes))


def _raise(loss):
    raise KeyError("no such camera")


def test_the_healthy_runs_loss_is_covered():
    outcome = outcome_of("grad.has-aux", context())
    assert "scalar float32 loss, aux [4, 50], gradients exactly the trainable tree" in outcome.summary


@pytest.mark.parametrize(
    ("spoil", "summary"),
    [
        (lambda loss: loss.mean(), "compute_loss returns float32[], expected [4, 50] (batch, horizon): the mean over"),
        (lambda loss: loss.mean(axis=1), "returns float32[4], expected [4, 50] (batch, horizon): the horizon was"),
        (lambda loss: loss.mean(axis=0), "returns float32[50], expected [4, 50] (batch, horizon): an axis is gone"),
        (lambda loss: loss.T, "returns float32[50,4], expected [4, 50] (batch, horizon): the axes are swapped"),
        (
            lambda loss: jnp.repeat(loss[..., None], 32, axis=-1),
            "returns float32[4,50,32], expected [4, 50] (batch, horizon): the mean over the action dimension is",
        ),
        (
            lambda loss: (loss.mean(), loss),
            "compute_loss returns a tuple of 2 (float32[], float32[4,50]), not one array [4, 50] (batch, horizon)",
        ),
        (lambda loss: {"loss": loss}, "compute_loss returns a dict (loss: float32[4,50]), not one array [4, 50]"),
        (lambda loss: None, "compute_loss returns None, not one array [4, 50] (batch, horizon)"),
        (lambda loss: loss.astype(int), "compute_loss returns int32[4,50]: only a floating loss has a gradient"),
        (_raise, "compute_loss raises KeyError: 'no such camera'"),
    ],
)
def test_a_broken_loss_trips_has_aux_alone_and_shows_where_it_is(spoil, summary):
    outcome = the_one_that_speaks(context(run=Broken(spoil)), "grad.has-aux", without=APART)
    assert summary in outcome.summary
    assert outcome.hint.text.startswith("compute_loss returns one floating array [batch, horizon]")
    assert outcome.hint.commands[0].endswith("--only 'grad.*'")
    assert any(f"{__file__}:" in line and "def compute_loss(" in line for line in outcome.evidence)


def test_a_bfloat16_loss_trips_has_aux_alone():
    broken = Broken(lambda loss: loss.astype(jnp.bfloat16))
    outcome = the_one_that_speaks(context(run=broken), "grad.has-aux", without=APART)
    assert outcome.summary == "[0][0], the loss, is bfloat16[]: its mean should be taken in float32"
    assert outcome.measured == {"compute_loss": "bfloat16[4,50]"}
    assert outcome.expected == {"loss": "float32[]", "aux": "float32[4,50]"}


def test_an_error_in_a_loss_is_shown_with_the_users_line():
    outcome = the_one_that_speaks(context(run=Broken(_raise)), "grad.has-aux", without=APART)
    assert outcome.evidence[0].startswith(f"{__file__}:")
    assert outcome.evidence[0].endswith('raise KeyError("no such camera")')


def test_jaxs_own_message_is_shown_in_one_line_with_the_users_line():
    outcome = the_one_that_speaks(
        context(run=Broken(lambda loss: loss + jnp.ones((3, 7)))), "grad.has-aux", without=APART
    )
    assert "compute_loss raises TypeError: add got incompatible shapes for broadcasting: (4, 50), (3, 7)." in (
        outcome.summary
    )
    assert "\n" not in outcome.summary
    assert "loss + jnp.ones((3, 7))" in outcome.evidence[0]


@pytest.mark.parametrize(
    ("returned", "kwargs", "summary"),
    [
        (lambda mean, each: mean, {"has_aux": True}, "aux is missing, the bare mean is returned"),
        (
            lambda mean, each: (each, mean),
            {"has_aux": True},
            "the pair is swapped, or the mean is missing",
        ),
        (
            lambda mean, each: (each, each),
            {"has_aux": True},
            "the pair is swapped, or the mean is missing",
        ),
        (lambda mean, each: (mean, each, each), {"has_aux": True}, "it returns more or fewer values"),
        (lambda mean, each: (each.mean(axis=0), each), {"has_aux": True}, "jnp.mean over samples and steps is missing"),
        (
            lambda mean, each: (mean.astype(int), each),
            {"has_aux": True},
            "the loss is int32: only a floating loss has a gradient",
        ),
        (lambda mean, each: (mean, each), {}, "is differentiated, as if it were the loss: has_aux=True is missing"),
        (lambda mean, each: mean, {}, "the first result is the bare loss float32[], not (loss, aux): has_aux=True"),
        (
            lambda mean, each: (mean, each.mean(axis=1)),
            {"has_aux": True},
            "[0][1], aux, is float32[4], expected [4, 50] (batch, horizon)",
        ),
        (lambda mean, each: (mean, None), {"has_aux": True}, "[0][1], aux, is None, expected [4, 50] (batch, horizon)"),
    ],
)
def test_a_mistake_in_the_steps_loss_fn_trips_has_aux_alone(monkeypatch, returned, kwargs, summary):
    def loss_and_grads(run, model, rng, batch):
        def loss_fn(model, rng, batch):
            each = run.compute_loss(model, rng, batch, train=True)
            return returned(jnp.mean(each), each)

        argnums = nnx.DiffState(0, run.trainable())
        return nnx.value_and_grad(loss_fn, argnums=argnums, **kwargs)(model, rng, batch)

    monkeypatch.setattr(step, "loss_and_grads", loss_and_grads)
    outcome = the_one_that_speaks(context(), "grad.has-aux", without=APART)
    assert summary in outcome.summary
    assert "has_aux=True" in outcome.hint.text
    assert outcome.measured == {"compute_loss": "float32[4,50]"}


def test_the_contract_is_explained_in_plain_words():
    loss, aux, leaf = (jnp.zeros(shape) for shape in ((), (4, 50), (3,)))
    trained = {"w": leaf}
    good = ((loss, aux), {"w": leaf})
    assert contract_problems(good, (4, 50), trained) == []
    assert contract_problems(loss, (4, 50), trained) == [
        "value_and_grad returned float32[], not the pair ((loss, aux), grads)"
    ]
    assert "has_aux=True is missing" in contract_problems((loss, {"w": leaf}), (4, 50), trained)[0]
    swapped = contract_problems(((aux, loss), {"w": leaf}), (4, 50), trained)
    assert swapped[0] == ("[0][0], the loss, is float32[4,50] and no scalar: the pair is swapped, aux comes second")
    assert "[0][1], aux, is float32[]" in swapped[1]
    assert contract_problems(((jnp.int32(0), aux), {"w": leaf}), (4, 50), trained) == [
        "[0][0], the loss, is int32[]: only a floating loss has a gradient"
    ]
    assert contract_problems(((loss, aux), {}), (4, 50), trained) == ["w is trainable and gets no gradient"]
    assert contract_problems(((loss, aux), {"w": leaf, "v": leaf}), (4, 50), trained) == [
        "v is frozen and gets a gradient"
    ]
    assert contract_problems(((loss, aux), {"w": aux}), (4, 50), trained) == ["w: gradient [4, 50], parameter [3]"]


def test_a_model_that_cannot_be_made_is_told_once_with_the_users_line():
    class Unmade(NativeRun):
        def create_model(self, rng):
            return super().create_model(rng)[0]

    run = Unmade(load_run(EXAMPLE, assignments=SOUND).config)
    outcome = the_one_that_speaks(context(run=run), "config.model", without=APART)
    assert outcome.summary.startswith("the model and its optimizer state cannot be made: TypeError: 'Pi0' object is")
    assert outcome.evidence[0].startswith(f"{__file__}:")


# grad.coverage


def coverage(*assignments):
    return outcome_of("grad.coverage", context(*assignments))


def table(outcome):
    """Trained and frozen parameters by module, from the lines of the evidence."""
    rows = [re.fullmatch(r"(.+?)  +([\d,]+) trained +([\d,]+) frozen", line) for line in outcome.evidence]
    return {row[1]: tuple(int(row[i].replace(",", "")) for i in (2, 3)) for row in rows if row}


def test_a_full_fine_tune_is_counted_by_module():
    outcome = coverage()
    assert outcome.status == "pass"
    counted = table(outcome)
    assert set(counted) == {"image tower", "language model", "action expert", "state and action projections"}
    assert sum(trained for trained, _ in counted.values()) == outcome.measured["trained_parameters"]
    assert outcome.measured["frozen_parameters"] == outcome.measured["lora_parameters"] == 0


def test_a_healthy_lora_run_is_silent_and_says_that_the_image_tower_is_trained():
    results = run_all(context(*LORA))
    assert spoken(results) == set(), {i: results[i].outcome.summary for i in spoken(results)}
    outcome = results["grad.coverage"].outcome
    counted = table(outcome)
    assert counted["LoRA adapters"] == (outcome.measured["lora_parameters"], 0)
    assert counted["language model"][0] == counted["action expert"][0] == 0
    assert counted["image tower"][1] == 0
    assert "the image tower is trained in full, as in openpi" in outcome.summary
    assert "freeze=['(?!.*lora).*llm.*', '.*/img/.*'] would spare" in outcome.summary
    # Its gradients and two moments, in float32.
    assert outcome.measured["image_tower_training_bytes"] == pytest.approx(12 * counted["image tower"][0], rel=1e-3)
    spared = coverage(*LORA, "freeze=['(?!.*lora).*llm.*', '.*/img/.*']")
    assert spared.status == "pass"
    assert table(spared)["image tower"] == (0, counted["image tower"][0])
    assert "as in openpi" not in spared.summary


@pytest.mark.parametrize(
    ("assignments", "status", "summary", "command"),
    [
        (
            ["freeze=['(?!.*lora).*llm.*']"],
            "fail",
            "the language model and the action expert have only frozen parameters",
            "--set model.paligemma_variant=dummy_lora --set model.action_expert_variant=dummy_lora --set freeze=none",
        ),
        (
            ["model.action_expert_variant=dummy_lora", "freeze=['(?!.*lora).*llm.*']"],
            "fail",
            "and no adapters: the freeze filter is LoRA's, and the model has no adapters there",
            "--set model.paligemma_variant=dummy_lora --set freeze=none",
        ),
        (["freeze=['.*llm((?!_1).)*']"], "warn", "and no adapters: nothing in it learns", "--set freeze=none"),
        (
            [*LORA, "freeze=[]"],
            "warn",
            "the language model and the action expert have adapters and trained parameters beneath them",
            "--set freeze=none",
        ),
        ([*LORA, "freeze=['.*llm.*']"], "fail", "LoRA parameters are frozen themselves", "--set freeze=none"),
    ],
)
def test_a_freeze_filter_that_does_not_suit_the_adapters_trips_coverage_alone(assignments, status, summary, command):
    outcome = the_one_that_speaks(context(*assignments), "grad.coverage")
    assert outcome.status == status
    assert summary in outcome.summary
    assert command in outcome.hint.commands[0]
    assert "language model" in table(outcome)


def test_adapters_in_one_expert_are_a_healthy_run():
    for variant in ("model.paligemma_variant=dummy_lora", "model.action_expert_variant=dummy_lora"):
        assert coverage(variant).status == "pass"


def test_a_moving_average_in_a_lora_run_trips_config_ema_alone():
    outcome = the_one_that_speaks(context(*LORA, "ema_decay=0.99"), "config.ema")
    assert "ema_decay is set in a LoRA run" in outcome.summary


def test_what_no_module_claims_goes_by_its_own_name():
    leaf = jnp.zeros((2, 3))
    found = modules({"head/kernel": leaf, "PaliGemma/img/x/LayerNorm_1/scale": leaf, "head/bias": leaf}, {"head/bias"})
    assert {name: (m.trained, m.frozen) for name, m in found.items()} == {"head": (6, 6), "image tower": (0, 6)}


# grad.finite


def finite(run):
    return outcome_of("grad.finite", context(run=run))


def cut(pattern):
    """The model with a stop_gradient on the leaves whose path contains `pattern`."""

    def before(model):
        structure, state = nnx.split(model)
        stopped = jax.tree_util.tree_map_with_path(
            lambda keys, leaf: jax.lax.stop_gradient(leaf) if pattern in parameter_path(keys) else leaf, state
        )
        return nnx.merge(structure, stopped)

    return before


def test_every_leaf_of_pi05_and_every_adapter_gets_a_gradient():
    # pi0 without adapters is the healthy run of test_checks.py.
    outcome = finite(load_run(EXAMPLE, assignments=[*SOUND, *LORA, "model.pi05=true"]))
    assert outcome.status == "pass", outcome
    assert "trained leaves get a finite gradient that is not zero" in outcome.summary


def test_what_is_cut_off_or_not_used_is_listed_by_path():
    class Wider(Broken):
        def create_model(self, rng):
            model = super().create_model(rng)
            model.forgotten = nnx.Param(jnp.ones(3))
            return model

        def _changed(self, **changes):
            return Wider(before=self.before, config=dataclasses.replace(self.config, **changes))

    outcome = finite(Wider(before=cut("state_proj")))
    assert outcome.status == "fail"
    assert outcome.evidence == ("forgotten", "state_proj/bias", "state_proj/kernel")
    assert "3 of 51 trained leaves get a gradient of exactly zero: forgotten and 2 more" in outcome.summary


def test_a_gradient_that_is_not_a_number_is_counted():
    def poisoned(model):
        kernel = model.state_proj["kernel"]
        value = kernel.get_value() if hasattr(type(kernel), "get_value") else kernel.value
        # The square root's slope at zero is infinite, and infinity times zero is NaN; the loss stays as it was.
        return value.sum() * 0

    class Nan(Broken):
        def compute_loss(self, model, rng, batch, *, train):
            return super().compute_loss(model, rng, batch, train=train) + jnp.sqrt(poisoned(model))

        def _changed(self, **changes):
            return Nan(config=dataclasses.replace(self.config, **changes))

    outcome = finite(Nan())
    assert outcome.status == "fail"
    assert "the gradient of 1 of 50 trained leaves is not finite" in outcome.summary
    assert "state_proj/kernel has 2,048 NaN of 2,048 elements" in outcome.summary
    assert outcome.hint.commands[0].startswith("JAX_DEBUG_NANS=True preflight check ")
