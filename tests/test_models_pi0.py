"""pi0 against openpi's own numbers (tests/data/parity), and against what its interface promises."""

import dataclasses
import json
import zlib
from pathlib import Path

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from preflight.config.schema import IMAGE_SIZE, IMAGE_SLOTS, ModelConfig
from preflight.errors import UsageError
from preflight.models.params import parameter_path
from preflight.models.pi0 import Pi0, batch_spec

PARITY = Path(__file__).parent / "data" / "parity"
SMALL = ModelConfig(
    siglip_variant="mu/16", paligemma_variant="dummy", action_expert_variant="dummy", vocab_size=512, dtype="float32"
)


def flat(state):
    """The leaves of a state by path, `PaliGemma/llm/…`."""
    return {parameter_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(state)}


def random_model(config):
    """The model with the parameters of the parity recipe; as initialised, its zero head would hide all images."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Pi0(config, nnx.Rngs(0))))

    def draw(keys, leaf):
        r = np.random.default_rng(zlib.crc32(parameter_path(keys).encode()))
        return jnp.asarray(r.standard_normal(leaf.shape) * 0.05, jnp.float32)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, state))


def random_batch(config, batch_size):
    r = np.random.default_rng(0)
    size = (batch_size, IMAGE_SIZE, IMAGE_SIZE, 3)
    return {
        "image": {slot: r.integers(0, 256, size).astype(np.uint8) for slot in IMAGE_SLOTS},
        "image_mask": {slot: np.full(batch_size, slot != "right_wrist_0_rgb") for slot in IMAGE_SLOTS},
        "state": r.standard_normal((batch_size, config.action_dim)).astype(np.float32),
        "tokenized_prompt": r.integers(0, config.vocab_size, (batch_size, config.max_token_len)).astype(np.int32),
        "tokenized_prompt_mask": np.tile(np.arange(config.max_token_len) < 7, (batch_size, 1)),
        "actions": r.standard_normal((batch_size, config.action_horizon, config.action_dim)).astype(np.float32),
    }


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


@pytest.fixture(scope="module")
def golden():
    """openpi's outputs, and ours for the same parameters and inputs."""
    config = dataclasses.replace(SMALL, vocab_size=257_152)
    model = random_model(config)

    r = np.random.default_rng(0)
    images = {slot: r.uniform(-1, 1, (2, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32) for slot in IMAGE_SLOTS}
    r = np.random.default_rng(1)
    batch = {
        "image": images,
        "image_mask": dict(zip(IMAGE_SLOTS, np.array([[1, 1], [1, 0], [0, 0]], bool), strict=True)),
        "state": r.standard_normal((2, 32)).astype(np.float32),
        "tokenized_prompt": r.integers(0, 257_152, (2, 48)).astype(np.int32),
        "tokenized_prompt_mask": np.arange(48)[None] < np.array([[48], [16]]),
        "actions": r.standard_normal((2, 50, 32)).astype(np.float32),
    }
    noise = r.standard_normal((2, 50, 32)).astype(np.float32)
    time = np.array([0.25, 0.9], np.float32)

    def loss(model, batch, noise, time):
        v_t = model.forward(batch, noise, time)
        chunked_loss = jnp.square(v_t - (noise - batch["actions"])).mean(axis=-1)
        return chunked_loss.mean(), {"v_t": v_t, "chunked_loss": chunked_loss}

    graphdef, state = nnx.split(model)

    @jax.jit
    def gradients_of(state, *inputs):
        gradient = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.Param), has_aux=True)
        (value, aux), gradients = gradient(nnx.merge(graphdef, state), *inputs)
        return {"loss": value, **aux}, gradients

    ours, gradients = gradients_of(state, batch, noise, time)
    norms = {path: float(jnp.linalg.norm(leaf.ravel())) for path, leaf in flat(gradients).items()}
    theirs = {**json.loads((PARITY / "golden.json").read_text())["pi0"], **np.load(PARITY / "golden_pi0.npz")}
    return theirs, {**ours, "grad_norm_by_path": norms, "grad_norm": np.sqrt(sum(n**2 for n in norms.values()))}


def test_full_size_has_openpis_parameters():
    expected = json.loads((PARITY / "params_pi0.json").read_text())
    leaves = flat(nnx.state(nnx.eval_shape(lambda: Pi0(ModelConfig(), nnx.Rngs(0)))))
    found = {path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in leaves.items()}
    assert found == expected["params"]
    assert sum(leaf.size for leaf in leaves.values()) == expected["parameters"] == 3_238_048_528


def test_full_size_gradient_traces():
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Pi0(ModelConfig(), nnx.Rngs(0))))

    def gradient(state, rng, batch):
        def loss(model):
            chunked = model.compute_loss(rng, batch, train=True)
            return chunked.mean(), chunked

        gradient = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.Param), has_aux=True)
        return gradient(nnx.merge(graphdef, state))

    rng = jax.eval_shape(lambda: jax.random.key(0))
    (value, chunked), gradients = jax.eval_shape(gradient, state, rng, batch_spec(ModelConfig(), 32))
    assert (value.shape, value.dtype) == ((), jnp.float32)
    assert (chunked.shape, chunked.dtype) == ((32, 50), jnp.float32)
    assert {p: g.shape for p, g in flat(gradients).items()} == {p: x.shape for p, x in flat(state).items()}


@pytest.mark.parametrize("name", ["v_t", "chunked_loss", "loss", "grad_norm"])
def test_small_model_computes_what_openpi_computes(golden, name):
    theirs, ours = golden
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5 if name == "v_t" else 0)


def test_each_gradient_has_the_norm_that_openpi_computes(golden):
    theirs, ours = (side["grad_norm_by_path"] for side in golden)
    assert ours.keys() == theirs.keys()
    # Softmax does not see a constant added to all keys: the gradient of the tower's key bias is rounding alone, 4e-14.
    wrong = {p: (ours[p], theirs[p]) for p in theirs if not np.isclose(ours[p], theirs[p], rtol=1e-4, atol=2e-9)}
    assert wrong == {}


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


def test_rematerialisation_changes_no_number(small_loss):
    batch = random_batch(SMALL, 2)
    kept = loss_function(random_model(dataclasses.replace(SMALL, remat=False)))(batch)
    np.testing.assert_allclose(kept, small_loss(batch), rtol=1e-6)


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
            "Valid names: dummy, gemma_2b, gemma_300m. Did you mean 'gemma_2b'?",
        ),
        (
            "action_expert_variant",
            "llama",
            "Unknown Gemma variant 'llama'.",
            "Valid names: dummy, gemma_2b, gemma_300m.",
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
            "Pair gemma_2b or gemma_300m with gemma_300m, or dummy with dummy.",
        ),
    ],
)
def test_variants_that_do_not_exist_or_fit_are_named(field, value, message, hint):
    with pytest.raises(UsageError) as raised:
        Pi0(dataclasses.replace(SMALL, **{field: value}), nnx.Rngs(0))
    assert (raised.value.message, raised.value.hint) == (message, hint)
