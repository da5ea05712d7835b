"""Parameters out of checkpoints: both layouts, what does not fit, and what is damaged."""

import dataclasses
import logging
import shutil
from pathlib import Path

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_models import SMALL, abstract_model, flat, random_model

from preflight.config.schema import ModelConfig
from preflight.errors import DataError
from preflight.models import weights
from preflight.models.weights import compare_weights, load_weights
from preflight.training.state import pure

TINY = dataclasses.replace(SMALL, siglip_variant="mu/112")
LORA = {"paligemma_variant": "dummy_lora", "action_expert_variant": "dummy_lora"}


def shapes(**changes):
    """Shapes of the model's parameters, nested."""
    return pure(nnx.state(abstract_model(dataclasses.replace(TINY, **changes))))


def parameters(**changes):
    return pure(nnx.state(random_model(dataclasses.replace(TINY, **changes))))


def write(folder, tree):
    ocp.PyTreeCheckpointer().save(folder / "params", {"params": tree})
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("checkpoint") / "7", parameters())


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    return write(tmp_path_factory.mktemp("adapted") / "7", parameters(**LORA))


def refusal(path, **changes):
    with pytest.raises(DataError) as caught:
        load_weights(path, shapes(**changes))
    return caught.value


def assert_are(loaded, tree):
    for (path, leaf), wanted in zip(flat(loaded).items(), jax.tree.leaves(tree), strict=True):
        assert type(leaf) is np.ndarray
        np.testing.assert_array_equal(leaf, wanted, err_msg=path)


def test_the_parameters_come_back(checkpoint):
    for path in (checkpoint, checkpoint / "params"):
        loaded = load_weights(path, shapes())
        assert jax.tree.structure(loaded.params) == jax.tree.structure(shapes())
        assert_are(loaded.params, parameters())
        assert (loaded.missing, loaded.extra) == ((), ())


def test_openpis_own_training_leaves_a_level_below_every_leaf(tmp_path):
    tree = jax.tree.map(lambda leaf: {"value": leaf}, parameters())
    assert_are(load_weights(write(tmp_path, tree), shapes()).params, parameters())


def test_a_checkpoint_of_another_type_is_converted(tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters())
    loaded = load_weights(write(tmp_path, half), shapes())
    assert_are(loaded.params, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}


def test_adapters_that_are_missing_are_left_out(checkpoint):
    loaded = load_weights(checkpoint, shapes(**LORA))
    assert_are(loaded.params, parameters())
    assert len(loaded.missing) == 20
    assert "PaliGemma/llm/layers/attn/q_einsum_1/lora_a" in loaded.missing
    assert "PaliGemma/llm/layers/mlp/gating_einsum_lora_b" in loaded.missing


def test_leaves_without_a_place_are_reported(adapted, caplog):
    with caplog.at_level(logging.WARNING, logger="preflight"):
        loaded = load_weights(adapted, shapes(action_expert_variant="dummy_lora"))
    assert len(loaded.extra) == 10
    assert loaded.missing == ()
    (record,) = caplog.records
    assert record.name == "preflight.models.weights"
    assert record.message == (
        f"{adapted}: the model has no place for 10 leaves of the checkpoint, which are not loaded: "
        "PaliGemma/llm/layers/attn/attn_vec_einsum/lora_a, PaliGemma/llm/layers/attn/attn_vec_einsum/lora_b, "
        "PaliGemma/llm/layers/attn/kv_einsum/lora_a and 7 more; adapters have a place with a _lora variant in "
        "model.paligemma_variant"
    )


@pytest.mark.parametrize(
    ("changes", "message", "settings"),
    [
        (
            {"action_dim": 14},
            "action_in_proj/kernel [32, 64] in the checkpoint, [14, 64] in the model",
            {"model.action_dim": 32},
        ),
        (
            {"pi05": True},
            "time_mlp_in/bias missing in the checkpoint, [64] in the model",
            {"model.pi05": False},
        ),
        (
            {"siglip_variant": "mu/16"},
            "PaliGemma/img/pos_embedding [1, 4, 32] in the checkpoint, [1, 196, 32] in the model",
            {"model.siglip_variant": "mu/112"},
        ),
        (
            {"siglip_variant": "Ti/112"},
            "PaliGemma/img/embedding/bias [32] in the checkpoint, [192] in the model",
            {"model.siglip_variant": "mu/112"},
        ),
        (
            {"vocab_size": 600},
            "PaliGemma/llm/embedder/input_embedding [512, 64] in the checkpoint, [600, 64] in the model",
            {"model.vocab_size": 512},
        ),
        (
            # What has adapters is to keep them.
            {"paligemma_variant": "gemma_300m", "action_expert_variant": "gemma_300m_lora"},
            "action_in_proj/kernel [32, 64] in the checkpoint, [32, 1024] in the model",
            {"model.action_expert_variant": "dummy_lora", "model.paligemma_variant": "dummy"},
        ),
    ],
)
def test_a_leaf_that_does_not_fit_is_named_with_the_likely_setting(checkpoint, changes, message, settings):
    error = refusal(checkpoint, **changes)
    assert error.message.startswith(f"{checkpoint} does not fit the model: ")
    fit = compare_weights(checkpoint, shapes(**changes))
    assert fit.settings == settings
    words = [f"{key}={str(value).lower() if value is False else value}" for key, value in settings.items()]
    assert f"{message}: {words[0]}" in fit.problems
    assert fit.problems[0] in error.message
    assert error.hint == f"the checkpoint's model is that of {' '.join(f'--set {word}' for word in words)}"
    # The settings that are named do mend it.
    mended = {key.removeprefix("model."): value for key, value in fit.settings.items()}
    assert compare_weights(checkpoint, shapes(**changes | mended)).problems == ()


def test_only_some_of_many_problems_are_in_the_message(checkpoint):
    assert refusal(checkpoint, action_dim=14).message.endswith("; and 1 more")


def test_a_pi05_checkpoint_under_pi0_is_named(tmp_path):
    write(tmp_path, parameters(pi05=True))
    assert "action_time_mlp_in/bias missing in the checkpoint, [64] in the model: model.pi05=true" in (
        refusal(tmp_path).message
    )
    assert compare_weights(tmp_path, shapes()).settings == {"model.pi05": True}


def test_adapters_of_another_rank_are_named(adapted, tmp_path):
    tree = load_weights(adapted, shapes(**LORA)).params
    tree["PaliGemma"]["llm"]["layers"]["mlp_1"]["linear_lora_b"] = np.zeros((4, 2, 64), np.float32)
    assert refusal(write(tmp_path, tree), **LORA).message.endswith(
        "PaliGemma/llm/layers/mlp_1/linear_lora_b [4, 2, 64] in the checkpoint, [4, 4, 64] in the model: "
        "its rank is not that of model.action_expert_variant"
    )


def test_sizes_of_no_variant_are_said_to_be_unknown(tmp_path):
    tree = parameters()
    tree["PaliGemma"]["llm"]["layers"]["mlp"]["linear"] = np.zeros((4, 96, 64), np.float32)
    tree["PaliGemma"]["llm"]["layers"]["mlp"]["gating_einsum"] = np.zeros((4, 2, 64, 96), np.float32)
    error = refusal(write(tmp_path, tree))
    assert "model.paligemma_variant (none of preflight's has these sizes)" in error.message
    assert error.hint == "choose the checkpoint of a model like this one"


def test_any_shapes_at_all_can_be_compared(tmp_path):
    write(tmp_path, jax.tree.map(lambda leaf: np.zeros(1, np.float32), shapes()))
    fit = compare_weights(tmp_path, shapes())
    assert len(fit.problems) == len(jax.tree.leaves(shapes()))
    assert set(fit.settings.values()) == {None}
    assert compare_weights(write(tmp_path / "one", {"a": np.zeros(3, np.float32)}), shapes()).extra == ("a",)


def test_comparing_reads_no_array_even_at_full_size(checkpoint, monkeypatch):
    monkeypatch.setattr(weights, "_read", None)
    full = pure(nnx.state(abstract_model(ModelConfig())))
    fit = compare_weights(checkpoint, full)
    assert fit.settings == {
        "model.action_expert_variant": "dummy",
        "model.siglip_variant": "mu/112",
        "model.paligemma_variant": "dummy",
        "model.vocab_size": 512,
    }
    assert compare_weights(checkpoint, shapes()).problems == ()


def test_what_is_no_checkpoint_is_said(tmp_path, checkpoint):
    error = refusal(tmp_path / "none")
    assert error.message == f"weights: {tmp_path}/none does not exist"
    assert "step folder" in error.hint
    for path in (tmp_path, Path(__file__)):
        assert refusal(path).message == f"weights: {path} is no checkpoint: it has no params/_METADATA"
    error = refusal(checkpoint.parent)
    assert error.message == f"weights: {checkpoint.parent} holds several checkpoints: 7"
    assert error.hint == f"name one of them: --set weights={checkpoint}"


# Orbax reads all leaves at once and gives up at the first that fails; the others then have nobody to report to.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["metadata", "manifest", "data", "tree"])
def test_a_damaged_checkpoint_is_said_to_be(checkpoint, tmp_path, damage):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "7"))
    params = folder / "params"
    if damage == "metadata":
        (params / "_METADATA").write_text("{")
    elif damage == "manifest":
        (params / "manifest.ocdbt").unlink()
    elif damage == "data":
        for file in params.glob("**/d/*"):
            file.write_bytes(b"\0" * file.stat().st_size)
    else:
        shutil.rmtree(params)
        ocp.PyTreeCheckpointer().save(params, {"other": {"kernel": np.zeros(3, np.float32)}})
    error = refusal(folder)
    assert error.message.startswith(f"weights: {params} cannot be read: ")
    assert "NoneType" not in error.message
    assert "fetch or save it again" in error.hint
