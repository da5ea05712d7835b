"""Gemma as a mixture of experts by position: each token has its own expert's weights, attention sees all tokens.

Gemma Team, arXiv:2403.08295; the mixture is that of Black et al., pi0, arXiv:2410.24164, section IV. The first expert's
paths are those of PaliGemma's checkpoints, the second's carry the suffix "_1".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from preflight.models.layers import as_row, scan_layers
from preflight.models.params import Leaf, Params, Spec, constant, lecun_normal, normal, stacked
from preflight.models.variants import GemmaSize

EPSILON = 1e-6  # of the RMS norms (gemma, layers.py of the reference implementation)
MASKED = -2.3819763e38  # logit of a pair that may not attend (gemma, modules.py): finite, so that no row becomes NaN
MAX_WAVELENGTH = 10_000  # of the rotary embedding (Su et al., RoFormer, arXiv:2104.09864)


def gemma_spec(experts: Sequence[GemmaSize], vocab_size: int) -> Spec:
    """The parameters of all experts; only the first embeds tokens."""
    layer: Spec = {"attn": {}}
    spec: Spec = {"embedder": {"input_embedding": Leaf((vocab_size, experts[0].width), normal(0.01))}}
    for i, size in enumerate(experts):
        width, heads, head_dim = size.width, size.num_heads, size.head_dim
        layer["attn"] |= {
            _of("q_einsum", i): {"w": Leaf((heads, width, head_dim), lecun_normal(width))},
            _of("kv_einsum", i): {"w": Leaf((2, size.num_kv_heads, width, head_dim), lecun_normal(width))},
            _of("attn_vec_einsum", i): {"w": Leaf((heads, head_dim, width), lecun_normal(heads * head_dim))},
        }
        layer[_of("mlp", i)] = {
            "gating_einsum": Leaf((2, width, size.mlp_dim), lecun_normal(width)),
            "linear": Leaf((size.mlp_dim, width), lecun_normal(size.mlp_dim)),
        }
        # A norm multiplies by 1 + scale.
        scale = {"scale": Leaf((width,), constant(0.0))}
        layer |= {_of("pre_attention_norm", i): scale, _of("pre_ffw_norm", i): scale}
        spec[_of("final_norm", i)] = scale
    return {**spec, "layers": stacked(experts[0].depth, layer)}


def embed_tokens(params: Params, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
    """Rows of the embedding table, scaled by the square root of their width; NaN for a token beyond the table."""
    table = params["embedder"]["input_embedding"]
    # NaN, not the last row: a tokenizer with more tokens than the model shows itself in the first loss.
    return jnp.take(table, tokens, axis=0, mode="fill") * math.sqrt(table.shape[1])


def run_experts(
    params: Params,
    tokens: Sequence[Float[Array, "b _t _d"]],
    mask: Bool[Array, "b t t"],
    positions: Int[Array, "b t"],
    *,
    dtype: str,
    remat: bool,
) -> tuple[Float[Array, "b _t _d"], ...]:
    """Runs the layers of all experts side by side.

    Args:
        params: Arrays of `gemma_spec`.
        tokens: Each expert's embedded tokens; attention sees them one after the other, `t` in all.
        mask: Which query (second axis) may see which key (last axis).
        positions: Of every token, for the rotary embedding.
        dtype: Type of the activations; norms, logits and softmax are computed in float32.
        remat: Compute the layers' activations again in the backward pass.

    Returns:
        Each expert's tokens after the last layer, in `dtype`, before the final norm.
    """
    head_dim = params["layers"]["attn"]["q_einsum"]["w"].shape[-1]
    # The same for all layers, so computed outside of them.
    rotation = _rotation(positions, head_dim)
    visible = mask[:, None, :, None]

    def layer(xs: tuple[Array, ...], p: Params) -> tuple[Array, ...]:
        normed = [rms_norm(p[_of("pre_attention_norm", i)]["scale"], x) for i, x in enumerate(xs)]
        xs = tuple(x + y for x, y in zip(xs, _attention(p["attn"], normed, visible, rotation), strict=True))
        normed = [rms_norm(p[_of("pre_ffw_norm", i)]["scale"], x) for i, x in enumerate(xs)]
        return tuple(x + _feed_forward(p[_of("mlp", i)], y) for i, (x, y) in enumerate(zip(xs, normed, strict=True)))

    return scan_layers(layer, tuple(x.astype(dtype) for x in tokens), params["layers"], remat=remat)


def rms_norm(scale: Float[Array, " d"], x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Divides by the root mean square over the features and multiplies by 1 + scale, in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + EPSILON)
    return (y * (1 + as_row(scale, y))).astype(x.dtype)


def _attention(params: Params, xs: list[Array], visible: Array, rotation: tuple[Array, Array]) -> list[Array]:
    def project(equation: str, name: str) -> list[Array]:
        return [jnp.einsum(equation, x, params[_of(name, i)]["w"].astype(x.dtype)) for i, x in enumerate(xs)]

    q = jnp.concatenate(project("btd,ndh->btnh", "q_einsum"), axis=1)
    k, v = jnp.concatenate(project("btd,cndh->cbtnh", "kv_einsum"), axis=2)
    k = _rotate(k, rotation)
    q = _rotate(q, rotation) * q.shape[-1] ** -0.5

    # Query heads in groups, g to each of the n key heads. Logits as the matrix product lays them out: no transposition.
    b, t, heads, head_dim = q.shape
    q = q.reshape(b, t, k.shape[2], heads // k.shape[2], head_dim)
    logits = jnp.einsum("btngh,bsnh->bntgs", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(visible, logits, MASKED)).astype(v.dtype)
    mixed = jnp.einsum("bntgs,bsnh->btngh", weights, v).reshape(b, t, heads, head_dim)

    bounds = np.cumsum([x.shape[1] for x in xs])[:-1].tolist()
    return [
        jnp.einsum("btnh,nhd->btd", part, params[_of("attn_vec_einsum", i)]["w"].astype(part.dtype))
        for i, part in enumerate(jnp.split(mixed, bounds, axis=1))
    ]


def _feed_forward(params: Params, x: Array) -> Array:
    gate, value = params["gating_einsum"].astype(x.dtype)
    return (jax.nn.gelu(x @ gate) * (x @ value)) @ params["linear"].astype(x.dtype)


def _rotation(positions: Array, head_dim: int) -> tuple[Array, Array]:
    """Sine and cosine of each position's angles, float32 [b, t, 1, head_dim / 2]: equal for all heads."""
    frequency = MAX_WAVELENGTH ** -(np.arange(head_dim // 2) * 2 / head_dim)
    angles = positions[:, :, None, None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)[None, None, None]
    return jnp.sin(angles), jnp.cos(angles)


def _rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    sin, cos = rotation
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _of(name: str, expert: int) -> str:
    return f"{name}_{expert}" if expert else name
