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

from preflight.models.layers import as_row, linear, scan_layers
from preflight.models.lora import Equations, adapted, matmul, project
from preflight.models.params import Leaf, Params, Spec, constant, dense, lecun_normal, normal, stacked
from preflight.models.variants import GemmaSize

EPSILON = 1e-6  # of the RMS norms (gemma, layers.py of the reference implementation)
MASKED = -2.3819763e38  # logit of a pair that may not attend (gemma, modules.py): finite, so that no row becomes NaN
MAX_WAVELENGTH = 10_000  # of the rotary embedding (Su et al., RoFormer, arXiv:2104.09864)

# The products of attention: b samples, t tokens, d features, n heads of h features, c key or value, r adapter's rank.
_QUERY = ("btd,ndh->btnh", "btd,ndr->btnr", "btnr,nrh->btnh")
_KEY_VALUE = ("btd,cndh->cbtnh", "btd,cndr->cbtnr", "cbtnr,cnrh->cbtnh")
# openpi's adapter sums over the heads before its second matrix, so that all heads share one.
_OUT = ("btnh,nhd->btd", "btnh,nhr->btr", "btr,nrd->btd")


def gemma_spec(experts: Sequence[GemmaSize], vocab_size: int, *, adaptive: Sequence[bool]) -> Spec:
    """The parameters of all experts; only the first embeds tokens.

    Args:
        experts: Their sizes.
        vocab_size: Rows of the embedding.
        adaptive: For each expert whether its norms are scaled, shifted and gated by a condition of its width.
    """
    layer: Spec = {"attn": {}}
    spec: Spec = {"embedder": {"input_embedding": Leaf((vocab_size, experts[0].width), normal(0.01))}}
    for i, size in enumerate(experts):
        width, heads, head_dim, rank = size.width, size.num_heads, size.head_dim, size.lora_rank
        wide, out = lecun_normal(width), lecun_normal(heads * head_dim)
        layer["attn"] |= {
            _of("q_einsum", i): adapted("w", Leaf((heads, width, head_dim), wide), rank),
            _of("kv_einsum", i): adapted("w", Leaf((2, size.num_kv_heads, width, head_dim), wide), rank),
            _of("attn_vec_einsum", i): adapted("w", Leaf((heads, head_dim, width), out), rank),
        }
        layer[_of("mlp", i)] = {
            **adapted("gating_einsum", Leaf((2, width, size.mlp_dim), wide), rank),
            **adapted("linear", Leaf((size.mlp_dim, width), lecun_normal(size.mlp_dim)), rank),
        }
        norm = _norm_spec(width, adaptive=adaptive[i])
        layer |= {_of("pre_attention_norm", i): norm, _of("pre_ffw_norm", i): norm}
        spec[_of("final_norm", i)] = norm
    return {**spec, "layers": stacked(experts[0].depth, layer)}


def embed_tokens(params: Params, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
    """Rows of the embedding table, scaled by the square root of their width; NaN for a token beyond the table."""
    table = params["embedder"]["input_embedding"]
    # NaN, not the last row: a tokenizer with more tokens than the model shows itself in the first loss.
    return jnp.take(table, tokens, axis=0, mode="fill") * math.sqrt(table.shape[1])


def run_experts(
    params: Params,
    experts: Sequence[GemmaSize],
    tokens: Sequence[Float[Array, "b _t _d"]],
    mask: Bool[Array, "b t t"],
    positions: Int[Array, "b t"],
    conditions: Sequence[Float[Array, "b _d"] | None],
    *,
    dtype: str,
    remat: bool,
    scan: bool,
) -> tuple[Float[Array, "b _t _d"], ...]:
    """Runs the layers of all experts side by side.

    Args:
        params: Arrays of `gemma_spec`.
        experts: Their sizes.
        tokens: Each expert's embedded tokens; attention sees them one after the other, `t` in all.
        mask: Which query (second axis) may see which key (last axis).
        positions: Of every token, for the rotary embedding.
        conditions: What each expert's norms adapt to; None where they are plain.
        dtype: Type of the activations; norms, logits and softmax are computed in float32.
        remat: Compute the layers' activations again in the backward pass.
        scan: Compile one layer and loop over it.

    Returns:
        Each expert's tokens after the last layer, in `dtype`, before the final norm.
    """
    head_dim = params["layers"]["attn"]["q_einsum"]["w"].shape[-1]
    # The same for all layers, so computed outside of them.
    rotation = _rotation(positions, head_dim)
    visible = mask[:, None, :, None]

    def layer(xs: tuple[Array, ...], p: Params) -> tuple[Array, ...]:
        def normed(name: str) -> tuple[list[Array], list[Array | None]]:
            pairs = [rms_norm(p[_of(name, i)], x, conditions[i]) for i, x in enumerate(xs)]
            return [y for y, _ in pairs], [gate for _, gate in pairs]

        ys, gates = normed("pre_attention_norm")
        ys = _attention(p["attn"], experts, ys, visible, rotation)
        xs = tuple(map(_add, xs, ys, gates))
        ys, gates = normed("pre_ffw_norm")
        ys = [_feed_forward(p[_of("mlp", i)], y) for i, y in enumerate(ys)]
        return tuple(map(_add, xs, ys, gates))

    return scan_layers(layer, tuple(x.astype(dtype) for x in tokens), params["layers"], remat=remat, scan=scan)


def rms_norm(
    params: Params, x: Float[Array, "b t d"], condition: Float[Array, "b d"] | None = None
) -> tuple[Float[Array, "b t d"], Float[Array, "b 1 d"] | None]:
    """Divides by the root mean square over the features, then multiplies by 1 + scale, in float32.

    Args:
        params: The scale; or, of an adaptive norm (Peebles and Xie, DiT, arXiv:2212.09748, section 3.2, there around a
            layer norm), the affine map from a condition to scale, shift and gate.
        x: Tokens.
        condition: Of an adaptive norm.

    Returns:
        The normed tokens, shifted where the norm is adaptive; and the gate by which what is computed from them is to be
        multiplied, None without.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + EPSILON)
    if condition is None:
        return (y * (1 + as_row(params["scale"], y))).astype(x.dtype), None
    # In the type of the tokens, as openpi has it; the product with the float32 tokens is float32.
    modulation = linear(params["Dense_0"], condition.astype(x.dtype))
    scale, shift, gate = jnp.split(modulation[:, None, :], 3, axis=-1)
    return (y * (1 + scale) + shift).astype(x.dtype), gate


def _norm_spec(width: int, *, adaptive: bool) -> Spec:
    # Zero: a norm multiplies by 1 + scale; an adaptive one lets nothing through its gate at first (adaLN-Zero in DiT).
    if adaptive:
        return {"Dense_0": dense(width, 3 * width, constant(0.0))}
    return {"scale": Leaf((width,), constant(0.0))}


def _add(x: Array, y: Array, gate: Array | None) -> Array:
    return x + y if gate is None else x + y * gate


def _attention(
    params: Params, experts: Sequence[GemmaSize], xs: list[Array], visible: Array, rotation: tuple[Array, Array]
) -> list[Array]:
    def projected(name: str, xs: list[Array], equations: Equations) -> list[Array]:
        return [project(params[_of(name, i)], x, equations, experts[i].lora_scale) for i, x in enumerate(xs)]

    q = jnp.concatenate(projected("q_einsum", xs, _QUERY), axis=1)
    k, v = jnp.concatenate(projected("kv_einsum", xs, _KEY_VALUE), axis=2)
    k = _rotate(k, rotation)
    q = _rotate(q, rotation) * q.shape[-1] ** -0.5

    # Query heads in groups, g to each of the n key heads. Logits as the matrix product lays them out: no transposition.
    # jax.nn.dot_product_attention took 1.02 to 1.25 times as long, forward and backward on a CPU (jax 0.10.2, 2 cores).
    b, t, heads, head_dim = q.shape
    q = q.reshape(b, t, k.shape[2], heads // k.shape[2], head_dim)
    logits = jnp.einsum("btngh,bsnh->bntgs", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(visible, logits, MASKED)).astype(v.dtype)
    mixed = jnp.einsum("bntgs,bsnh->btngh", weights, v).reshape(b, t, heads, head_dim)

    bounds = np.cumsum([x.shape[1] for x in xs])[:-1].tolist()
    return projected("attn_vec_einsum", jnp.split(mixed, bounds, axis=1), _OUT)


def _feed_forward(params: Params, x: Array) -> Array:
    gate, value = (matmul(params, "gating_einsum", x, half) for half in (0, 1))
    return matmul(params, "linear", jax.nn.gelu(gate) * value)


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
