"""`config.weights` on checkpoints that Orbax wrote."""

import flax.nnx as nnx
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from healthy import context, outcome_of, the_one_that_speaks

from preflight.runs import load_run
from preflight.training.state import pure

ONE_ACTION_LESS = "model.action_dim=31"
LORA = ["model.paligemma_variant=dummy_lora", "model.action_expert_variant=dummy_lora"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Parameters of the healthy run's paths and shapes: the check looks at no value."""
    folder = tmp_path_factory.mktemp("weights") / "7"
    model = nnx.state(nnx.eval_shape(lambda: context().run.create_model(jax.random.key(0))))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), pure(model))
    ocp.PyTreeCheckpointer().save(folder / "params", {"params": zeros})
    return folder


def test_no_weights_are_skipped_and_fitting_ones_pass(checkpoint):
    assert outcome_of("config.weights", context()).status == "skip"
    outcome = outcome_of("config.weights", context(f"weights={checkpoint}"))
    assert (outcome.status, outcome.summary) == ("pass", "50 leaves of the checkpoint fit by path and shape")


def test_adapters_that_are_missing_are_initialised(checkpoint):
    outcome = outcome_of("config.weights", context(f"weights={checkpoint}", *LORA))
    assert outcome.status == "pass"
    assert outcome.summary == "50 leaves of the checkpoint fit by path and shape, 20 LoRA leaves are initialised"


def test_weights_of_another_size_trip_it_alone_and_the_setting_is_named(checkpoint):
    outcome = the_one_that_speaks(context(f"weights={checkpoint}", ONE_ACTION_LESS), "config.weights")
    assert outcome.status == "fail"
    assert "[32, 64] in the checkpoint, [31, 64] in the model: model.action_dim=32" in outcome.summary
    assert outcome.hint.text == "the checkpoint's model is that of --set model.action_dim=32"


def test_leaves_without_a_place_are_told(checkpoint):
    outcome = outcome_of("config.weights", context(f"weights={checkpoint}", "model.pi05=true"))
    assert outcome.status == "fail"
    assert "model.pi05=false" in outcome.summary


def test_a_missing_checkpoint_is_one_sentence(tmp_path):
    outcome = outcome_of("config.weights", context(f"weights={tmp_path / 'none'}"))
    assert outcome.status == "fail"
    assert str(tmp_path / "none") in outcome.summary


def test_prompts_in_other_words_than_the_checkpoints_are_warned_of(tmp_path, monkeypatch):
    run = load_run("pi0_lighter_cup_trossen", assignments=[f"weights={tmp_path}"])
    monkeypatch.setattr(type(run), "weights_fit", lambda self, params: _everything(params))
    outcome = outcome_of("config.weights", context(run=run))
    assert outcome.status == "warn"
    assert "other words than PaliGemma's" in outcome.summary


def _everything(params):
    from preflight.models.fit import fit_of

    flat = {"/".join(key.key for key in keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return fit_of(flat, flat)
