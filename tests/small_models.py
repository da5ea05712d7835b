"""Small models for tests, with the parameters of the parity recipe."""

import zlib
from pathlib import Path

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np

from preflight.config.schema import IMAGE_SIZE, IMAGE_SLOTS, ModelConfig
from preflight.models.params import parameter_path
from preflight.models.pi0 import Pi0

PARITY = Path(__file__).parent / "data" / "parity"
SMALL = ModelConfig(
    siglip_variant="mu/16", paligemma_variant="dummy", action_expert_variant="dummy", vocab_size=512, dtype="float32"
)


def flat(state):
    """The leaves of a state by path, `PaliGemma/llm/…`."""
    return {parameter_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(state)}


def abstract_model(config):
    """The model with shapes in place of parameters."""
    return nnx.eval_shape(lambda: Pi0(config, nnx.Rngs(0)))


def random_model(config):
    """The model with the parameters of the parity recipe; as initialised, its zero head would hide all images."""
    graphdef, state = nnx.split(abstract_model(config))

    def draw(keys, leaf):
        r = np.random.default_rng(zlib.crc32(parameter_path(keys).encode()))
        return jnp.asarray(r.standard_normal(leaf.shape) * 0.05, jnp.float32)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, state))


def random_batch(config, batch_size):
    """A batch with one camera masked out and seven words in the prompt."""
    r = np.random.default_rng(0)
    size = (batch_size, IMAGE_SIZE, IMAGE_SIZE, 3)
    return {
        "image": {slot: r.integers(0, 256, size).astype(np.uint8) for slot in IMAGE_SLOTS},
        "image_mask": {slot: np.full(batch_size, slot != "right_wrist_0_rgb") for slot in IMAGE_SLOTS},
        "state": r.standard_normal((batch_size, config.action_dim)).astype(np.float32),
        "tokenized_prompt": r.integers(0, config.vocab_size, (batch_size, config.prompt_len)).astype(np.int32),
        "tokenized_prompt_mask": np.tile(np.arange(config.prompt_len) < 7, (batch_size, 1)),
        "actions": r.standard_normal((batch_size, config.action_horizon, config.action_dim)).astype(np.float32),
    }
