"""pi0 and pi0.5: a vision-language model and an action expert that learn the flow from noise to a robot's next actions.

Black et al., pi0: A Vision-Language-Action Flow Model for General Robot Control, arXiv:2410.24164. Physical
Intelligence, pi0.5: a Vision-Language-Action Model with Open-World Generalization, arXiv:2504.16054, of which this is
the flow matching alone, as in openpi. Parameter paths, shapes and arithmetic are those of openpi's JAX model, so that
checkpoints move between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from preflight.config.schema import IMAGE_SIZE, IMAGE_SLOTS, ModelConfig
from preflight.models.gemma import embed_tokens, gemma_spec, rms_norm, run_experts
from preflight.models.layers import linear
from preflight.models.params import Params, Spec, arrays, build, dense
from preflight.models.siglip import encode_images, siglip_spec
from preflight.models.variants import expert_sizes, siglip_size

# Of the flow time's embedding, openpi's values: fine enough for differences of 1/1000 in a time between 0 and 1.
MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0


class Pi0(nnx.Module):
    """The model; all its state is its parameters.

    Args:
        config: Sizes and types.
        rngs: The stream "params" (or the default one) seeds the initial parameters; one key is drawn from it.

    Raises:
        UsageError: `config` names an unknown variant, or two experts that do not fit each other.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        for name, node in build(pi0_spec(config), rngs.params()).items():
            setattr(self, name, node)

    def compute_loss(self, rng: Array, batch: Mapping[str, Any], *, train: bool) -> Float[Array, "b h"]:
        """The flow-matching loss at a random time between noise (1) and actions (0).

        Args:
            rng: Key for the noise and the times.
            batch: As `batch_spec` describes; images uint8, or float32 in [-1, 1].
            train: Part of the protocol of runs; this model has neither dropout nor augmentation that it would switch.

        Returns:
            The squared error of the predicted velocity for each sample and action step, averaged over the action
            dimensions.
        """
        actions = batch["actions"]
        noise_rng, time_rng = jax.random.split(rng)
        noise = jax.random.normal(noise_rng, actions.shape, actions.dtype)
        # openpi's Beta(1.5, 1), squeezed away from time 0. Its distribution function is t ** 1.5, and inverting that
        # spares tracing and compiling the general sampler's rejection loop.
        time = jax.random.uniform(time_rng, actions.shape[:1], actions.dtype) ** (1 / 1.5) * 0.999 + 0.001
        error = self.forward(batch, noise, time) - (noise - actions)
        return jnp.square(error).mean(axis=-1)

    def forward(
        self, batch: Mapping[str, Any], noise: Float[Array, "b h a"], time: Float[Array, " b"]
    ) -> Float[Array, "b h a"]:
        """The velocity that the model predicts on the way from noise to actions.

        Args:
            batch: As `batch_spec` describes.
            noise: Where the flow begins, in the shape of the actions.
            time: 1 at the noise, 0 at the actions.

        Returns:
            The predicted velocity, whose target is `noise - batch["actions"]`.
        """
        config, params = self.config, _params(self)
        at = time[:, None, None]
        noisy_actions = at * noise + (1 - at) * batch["actions"]
        prefix, prefix_valid = _embed_observation(params, batch, config)
        embed_suffix = _embed_actions_pi05 if config.pi05 else _embed_actions
        suffix, condition = embed_suffix(params, batch["state"], noisy_actions, time)

        # Attention goes within a block and to those before it: images and prompt, then pi0's state, then the actions.
        num_prefix, num_suffix, horizon = prefix.shape[1], suffix.shape[1], config.action_horizon
        block = np.repeat([0, 1, 2], [num_prefix, num_suffix - horizon, horizon])
        valid = jnp.concatenate([prefix_valid, jnp.ones((len(time), num_suffix), bool)], axis=1)
        mask = (block[None, :] <= block[:, None])[None] & valid[:, None, :] & valid[:, :, None]
        positions = jnp.cumsum(valid, axis=1) - 1

        llm = params["PaliGemma"]["llm"]
        _, out = run_experts(
            llm,
            expert_sizes(config),
            (prefix, suffix),
            mask,
            positions,
            (None, condition),
            dtype=config.dtype,
            remat=config.remat,
            scan=config.scan,
        )
        out, _ = rms_norm(llm["final_norm_1"], out[:, -horizon:], condition)
        # The velocity in float32, as openpi's type promotion has it.
        return linear(params["action_out_proj"], out.astype(jnp.float32))


def pi0_spec(config: ModelConfig) -> Spec:
    """Shapes and initialisers of all parameters, nested as in openpi's checkpoints."""
    language, action = expert_sizes(config)
    width = action.width
    if config.pi05:
        suffix = {"time_mlp_in": dense(width, width), "time_mlp_out": dense(width, width)}
    else:
        suffix = {
            "state_proj": dense(config.action_dim, width),
            "action_time_mlp_in": dense(2 * width, width),
            "action_time_mlp_out": dense(width, width),
        }
    return {
        "PaliGemma": {
            "llm": gemma_spec((language, action), config.vocab_size, adaptive=(False, config.pi05)),
            "img": siglip_spec(siglip_size(config.siglip_variant), language.width),
        },
        "action_in_proj": dense(config.action_dim, width),
        "action_out_proj": dense(width, config.action_dim),
        **suffix,
    }


def batch_spec(config: ModelConfig, batch_size: int) -> dict[str, Any]:
    """Shapes and types of a training batch, in the nesting that the loader yields."""

    def array(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    return {
        "image": {slot: array(IMAGE_SIZE, IMAGE_SIZE, 3, dtype=jnp.uint8) for slot in IMAGE_SLOTS},
        "image_mask": {slot: array(dtype=jnp.bool_) for slot in IMAGE_SLOTS},
        "state": array(config.action_dim, dtype=jnp.float32),
        "tokenized_prompt": array(config.prompt_len, dtype=jnp.int32),
        "tokenized_prompt_mask": array(config.prompt_len, dtype=jnp.bool_),
        "actions": array(config.action_horizon, config.action_dim, dtype=jnp.float32),
    }


def _params(model: Pi0) -> Params:
    return arrays({name: node for name, node in vars(model).items() if isinstance(node, nnx.Dict)})


def _embed_observation(
    params: Params, batch: Mapping[str, Any], config: ModelConfig
) -> tuple[Float[Array, "b t d"], Bool[Array, "b t"]]:
    """Tokens of the images, in the order of IMAGE_SLOTS, and of the prompt; and which of them are real."""
    # One pass through the tower for all cameras: a third of the kernels, and one trace.
    images = jnp.concatenate([_as_float(batch["image"][slot]) for slot in IMAGE_SLOTS])
    size = siglip_size(config.siglip_variant)
    seen = encode_images(
        params["PaliGemma"]["img"], images, size, dtype=config.dtype, remat=config.remat, scan=config.scan
    )
    read = embed_tokens(params["PaliGemma"]["llm"], batch["tokenized_prompt"]).astype(config.dtype)
    tokens = jnp.concatenate([*jnp.split(seen, len(IMAGE_SLOTS)), read], axis=1)

    shown = jnp.stack([batch["image_mask"][slot] for slot in IMAGE_SLOTS], axis=1)
    valid = jnp.concatenate([jnp.repeat(shown, size.num_tokens, axis=1), batch["tokenized_prompt_mask"]], axis=1)
    return tokens, valid


def _as_float(image: Array) -> Array:
    return image / jnp.float32(127.5) - 1 if image.dtype == jnp.uint8 else image


def _embed_actions(
    params: Params, state: Float[Array, "b a"], noisy_actions: Float[Array, "b h a"], time: Float[Array, " b"]
) -> tuple[Float[Array, "b t d"], None]:
    """pi0: one token for the state, then one for each noisy action, with the flow time mixed in; float32."""
    actions = linear(params["action_in_proj"], noisy_actions)
    when = jnp.broadcast_to(_embed_time(time, actions.shape[-1])[:, None, :], actions.shape)
    hidden = jax.nn.silu(linear(params["action_time_mlp_in"], jnp.concatenate([actions, when], axis=-1)))
    actions = linear(params["action_time_mlp_out"], hidden)
    return jnp.concatenate([linear(params["state_proj"], state)[:, None, :], actions], axis=1), None


def _embed_actions_pi05(
    params: Params, state: Float[Array, "b a"], noisy_actions: Float[Array, "b h a"], time: Float[Array, " b"]
) -> tuple[Float[Array, "b t d"], Float[Array, "b d"]]:
    """pi0.5: one token for each noisy action, and the condition of the action expert's norms; float32.

    The state is in the prompt, as text; `state` is not looked at.
    """
    actions = linear(params["action_in_proj"], noisy_actions)
    hidden = jax.nn.silu(linear(params["time_mlp_in"], _embed_time(time, actions.shape[-1])))
    return actions, jax.nn.silu(linear(params["time_mlp_out"], hidden))


def _embed_time(time: Float[Array, " b"], dim: int) -> Float[Array, "b dim"]:
    """Sines, then cosines, with periods spaced geometrically from MIN_PERIOD to MAX_PERIOD."""
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** np.linspace(0, 1, dim // 2)
    angles = time[:, None] * jnp.asarray(2 * np.pi / period, jnp.float32)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
