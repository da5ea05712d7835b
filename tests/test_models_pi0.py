"""pi0 against what its interface promises; tests/test_models_parity.py has openpi's numbers."""

import dataclasses

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL, flat, random_batch, random_model

from preflight.config.schema import IMAGE_SLOTS
from preflight.errors import UsageError
from preflight.models.pi0 import Pi0, batch_spec

GEMMAS = "dummy, dummy_lora, gemma_2b, gemma_2b_lora, gemma_300m, gemma_300m_lora"


def loss_function(model):
    """The model's loss of a batch, compiled, always with the same noise and times."""
    graphdef, state = nnx.split(model)
    compiled = jax.jit(
        lambda state, batch: nnx.merge(graphdef, state).compute_loss(jax.random.key(1), batch, train=True)
    )
    return lambda batch: np.asarray(compiled(state, batch))


@pytest.fixture(scope="module")
def small_loss():
    return loss_function(random_model(SMALL))


def test_initial_parameters_are_distributed_as_openpis():
    create = jax.jit(lambda key: nnx.state(Pi0(SMALL, nnx.Rngs(params=key))))
    leaves, others = flat(create(jax.random.key(0))), flat(create(jax.random.key(1)))
    width, vit = 64, 32
    deviations = {
        "PaliGemma/llm/embedder/input_embedding": 0.01,
        "PaliGemma/llm/layers/attn/q_einsum/w": width**-0.5,
        "PaliGemma/llm/layers/attn/kv_einsum_1/w": width**-0.5,
        "PaliGemma/llm/layers/attn/attn_vec_einsum/w": (8 * 16) ** -0.5,
        "PaliGemma/llm/layers/mlp/gating_einsum": width**-0.5,
        "PaliGemma/llm/layers/mlp_1/linear": 128**-0.5,
        "PaliGemma/img/embedding/kernel": (16 * 16 * 3) ** -0.5,
        "PaliGemma/img/pos_embedding": vit**-0.5,
        "PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel": vit**-0.5,
        "PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel": vit**-0.5,
        "PaliGemma/img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": (2 / (vit + 128)) ** 0.5,
        "PaliGemma/img/Transformer/encoderblock/MlpBlock_0/Dense_1/bias": 1e-6,
        "action_time_mlp_in/kernel": (2 * width) ** -0.5,
    }
    # The smallest of them, a bias of 32 elements, is uncertain to an eighth (one standard error).
    found = {path: float(leaves[path].std()) for path in deviations}
    assert found == {
        path: pytest.approx(value, rel=0.3 if "bias" in path else 0.06) for path, value in deviations.items()
    }
    zero = {path for path, leaf in leaves.items() if not leaf.any()}
    assert {"PaliGemma/img/head/kernel", "PaliGemma/llm/layers/pre_ffw_norm/scale", "state_proj/bias"} <= zero
    assert bool((leaves["PaliGemma/img/Transformer/encoderblock/LayerNorm_0/scale"] == 1).all())
    # Layers and leaves are drawn independently.
    first, second = leaves["PaliGemma/llm/layers/attn/q_einsum/w"][:2]
    assert not jnp.allclose(first, second)
    assert not jnp.allclose(first, leaves["PaliGemma/llm/layers/attn/q_einsum_1/w"][0])
    assert not jnp.allclose(first, others["PaliGemma/llm/layers/attn/q_einsum/w"][0])


def test_loss_of_uint8_images_is_one_finite_value_a_sample_and_step(small_loss):
    batch = random_batch(SMALL, 2)
    chunked = small_loss(batch)
    assert (chunked.shape, chunked.dtype) == ((2, SMALL.action_horizon), np.float32)
    assert np.isfinite(chunked).all()
    as_float = {slot: (image / 127.5 - 1).astype(np.float32) for slot, image in batch["image"].items()}
    np.testing.assert_allclose(small_loss({**batch, "image": as_float}), chunked, rtol=1e-5)


def test_only_images_whose_mask_is_true_influence_the_loss(small_loss):
    batch = random_batch(SMALL, 2)
    inverted = {slot: {**batch["image"], slot: 255 - batch["image"][slot]} for slot in IMAGE_SLOTS}
    changed = {
        slot: bool((small_loss({**batch, "image": inverted[slot]}) != small_loss(batch)).any()) for slot in inverted
    }
    assert changed == {"base_0_rgb": True, "left_wrist_0_rgb": True, "right_wrist_0_rgb": False}


def test_only_prompt_tokens_whose_mask_is_true_influence_the_loss(small_loss):
    batch = random_batch(SMALL, 2)
    padding, word = batch["tokenized_prompt"].copy(), batch["tokenized_prompt"].copy()
    padding[:, 7:] = 0
    word[:, 6] = (word[:, 6] + 1) % SMALL.vocab_size
    np.testing.assert_array_equal(small_loss({**batch, "tokenized_prompt": padding}), small_loss(batch))
    assert (small_loss({**batch, "tokenized_prompt": word}) != small_loss(batch)).any()


def test_token_beyond_the_vocabulary_makes_the_loss_nan(small_loss):
    batch = random_batch(SMALL, 2)
    batch["tokenized_prompt"][1, 0] = SMALL.vocab_size
    assert np.isnan(small_loss(batch)).all(axis=1).tolist() == [False, True]


def test_neither_rematerialisation_nor_the_loop_over_layers_changes_a_number():
    tiny = dataclasses.replace(SMALL, siglip_variant="mu/112", action_horizon=4, max_token_len=8)
    batch = random_batch(tiny, 2)

    def gradients(**changes):
        graphdef, state = nnx.split(random_model(dataclasses.replace(tiny, **changes)))

        def loss(model, batch):
            return model.compute_loss(jax.random.key(1), batch, train=True).mean()

        step = jax.jit(lambda state, batch: nnx.value_and_grad(loss)(nnx.merge(graphdef, state), batch))
        compiled = step.lower(state, batch).compile()
        value, leaves = compiled(state, batch)
        return {"loss": value, **flat(leaves)}, compiled.as_text()

    (wanted, looped), (kept, _), (unrolled, flattened) = gradients(), gradients(remat=False), gradients(scan=False)
    for found in (kept, unrolled):
        assert found.keys() == wanted.keys()
        for path, leaf in found.items():
            # What cancels out leaves the rounding of its terms, which are as large as the leaf's others.
            rounding = max(1e-7, 1e-6 * float(np.abs(wanted[path]).max()))
            np.testing.assert_allclose(leaf, wanted[path], rtol=1e-5, atol=rounding, err_msg=path)
    # The only loops left are those of the random numbers.
    assert looped.count(" while(") == flattened.count(" while(") + 2


def test_bfloat16_activations_stay_near_float32(small_loss):
    batch = random_batch(SMALL, 2)
    model = random_model(dataclasses.replace(SMALL, dtype="bfloat16"))
    assert {str(leaf.dtype) for leaf in flat(nnx.state(model)).values()} == {"float32"}
    chunked = loss_function(model)(batch)
    assert chunked.dtype == np.float32
    np.testing.assert_allclose(chunked, small_loss(batch), rtol=0.02)
    assert (chunked != small_loss(batch)).any()


def test_time_is_drawn_from_the_beta_distribution():
    class Spy(Pi0):
        def forward(self, batch, noise, time):
            return jnp.broadcast_to(time[:, None, None], noise.shape) + (noise - batch["actions"])

    batch = {"actions": jnp.zeros((20_000, 1, 1))}
    tiny = dataclasses.replace(SMALL, action_dim=1, action_horizon=1)
    model = nnx.eval_shape(lambda: Spy(tiny, nnx.Rngs(0)))  # its parameters are not looked at
    squared = model.compute_loss(jax.random.key(0), batch, train=True)
    time = np.sqrt(np.asarray(squared).ravel())
    assert time.min() >= 0.001
    assert time.max() <= 1.0
    # Beta(1.5, 1): mean 1.5 / 2.5, variance 1.5 / (2.5**2 * 3.5).
    assert time.mean() == pytest.approx(0.6 * 0.999 + 0.001, abs=0.006)
    assert time.std() == pytest.approx(0.999 * (1.5 / (2.5**2 * 3.5)) ** 0.5, abs=0.004)


def test_batch_spec_is_the_layout_of_a_batch():
    spec = batch_spec(SMALL, 2)
    assert jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), spec) == jax.tree.map(
        lambda x: (x.shape, x.dtype), random_batch(SMALL, 2)
    )
    assert list(spec["image"]) == list(IMAGE_SLOTS)


@pytest.mark.parametrize(
    ("field", "value", "message", "hint"),
    [
        (
            "paligemma_variant",
            "gemma_2B",
            "Unknown Gemma variant 'gemma_2B'.",
            f"Valid names: {GEMMAS}. Did you mean 'gemma_2b'?",
        ),
        (
            "action_expert_variant",
            "llama",
            "Unknown Gemma variant 'llama'.",
            f"Valid names: {GEMMAS}.",
        ),
        (
            "siglip_variant",
            "huge/14",
            "Unknown image tower (siglip_variant) 'huge'.",
            "Valid names: B, L, S, So400m, Ti, mu.",
        ),
        (
            "siglip_variant",
            "mu",
            "'mu' is no image tower (siglip_variant): the patch must divide the image's 224 pixels.",
            'Write the size and the patch side in pixels, as in "mu/14" or "mu/16".',
        ),
        (
            "siglip_variant",
            "B/15",
            "'B/15' is no image tower (siglip_variant): the patch must divide the image's 224 pixels.",
            'Write the size and the patch side in pixels, as in "B/14" or "B/16".',
        ),
        (
            "action_expert_variant",
            "gemma_300m",
            "paligemma_variant 'dummy' and action_expert_variant 'gemma_300m' cannot share attention: depth 4 and 18.",
            "Pair gemma_2b or gemma_300m with gemma_300m, or dummy with dummy; each with or without _lora.",
        ),
    ],
)
def test_variants_that_do_not_exist_or_fit_are_named(field, value, message, hint):
    with pytest.raises(UsageError) as raised:
        Pi0(dataclasses.replace(SMALL, **{field: value}), nnx.Rngs(0))
    assert (raised.value.message, raised.value.hint) == (message, hint)
