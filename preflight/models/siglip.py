"""The image tower: SigLIP's vision transformer, one token a patch.

Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343. The paths of its parameters are those of
big_vision's checkpoints, from which PaliGemma and openpi took them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from preflight.models.layers import as_row, linear, scan_layers
from preflight.models.params import Leaf, Params, Spec, constant, dense, lecun_normal, normal, stacked, xavier_uniform
from preflight.models.variants import SiglipSize

EPSILON = 1e-6  # of the layer norms: flax's default, with which the checkpoints were trained


def siglip_spec(size: SiglipSize, out_dim: int) -> Spec:
    """The tower's parameters; `out_dim` is the width of the language model that reads its tokens."""
    width, heads, head_dim, patch = size.width, size.num_heads, size.head_dim, size.patch
    head = {
        "kernel": Leaf((width, heads, head_dim), xavier_uniform(width, width)),
        "bias": Leaf((heads, head_dim), constant(0.0)),
    }
    small = normal(1e-6)
    layer = {
        "LayerNorm_0": _layer_norm_spec(width),
        "MultiHeadDotProductAttention_0": {
            "query": head,
            "key": head,
            "value": head,
            "out": {
                "kernel": Leaf((heads, head_dim, width), xavier_uniform(width, width)),
                "bias": Leaf((width,), constant(0.0)),
            },
        },
        "LayerNorm_1": _layer_norm_spec(width),
        "MlpBlock_0": {
            "Dense_0": dense(width, size.mlp_dim, xavier_uniform(width, size.mlp_dim), small),
            "Dense_1": dense(size.mlp_dim, width, xavier_uniform(size.mlp_dim, width), small),
        },
    }
    return {
        "embedding": {
            "kernel": Leaf((patch, patch, 3, width), lecun_normal(patch * patch * 3)),
            "bias": Leaf((width,), constant(0.0)),
        },
        "pos_embedding": Leaf((1, size.num_tokens, width), normal(1 / math.sqrt(width))),
        "Transformer": {"encoderblock": stacked(size.depth, layer), "encoder_norm": _layer_norm_spec(width)},
        # Zero, so that images tell an untrained language model nothing rather than noise.
        "head": dense(width, out_dim, constant(0.0)),
    }


def encode_images(
    params: Params,
    images: Float[Array, "n side side 3"],
    size: SiglipSize,
    *,
    dtype: str,
    remat: bool,
    scan: bool,
) -> Float[Array, "n t d"]:
    """Image tokens in the width of the language model.

    Args:
        params: Arrays of `siglip_spec`.
        images: float32 in [-1, 1].
        size: The tower's size.
        dtype: Type of the activations; patches and positions are embedded in float32 and then cast.
        remat: Compute the layers' activations again in the backward pass.
        scan: Compile one layer and loop over it.

    Returns:
        `size.num_tokens` tokens an image, row by row, in `dtype`.
    """
    n, side = images.shape[:2]
    grid, patch = side // size.patch, size.patch
    # Convolving with a stride as long as the kernel is a product of flattened patches with the flattened kernel.
    patches = images.reshape(n, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    embedding = {**params["embedding"], "kernel": params["embedding"]["kernel"].reshape(patch * patch * 3, size.width)}
    x = linear(embedding, patches.reshape(n, grid * grid, patch * patch * 3)) + params["pos_embedding"]

    def layer(x: Array, p: Params) -> Array:
        x = x + _attention(p["MultiHeadDotProductAttention_0"], _layer_norm(p["LayerNorm_0"], x))
        hidden = jax.nn.gelu(linear(p["MlpBlock_0"]["Dense_0"], _layer_norm(p["LayerNorm_1"], x)))
        return x + linear(p["MlpBlock_0"]["Dense_1"], hidden)

    x = scan_layers(layer, x.astype(dtype), params["Transformer"]["encoderblock"], remat=remat, scan=scan)
    return linear(params["head"], _layer_norm(params["Transformer"]["encoder_norm"], x))


def _attention(params: Params, x: Array) -> Array:
    def project(name: str) -> Array:
        heads = jnp.einsum("ntd,dkh->ntkh", x, params[name]["kernel"].astype(x.dtype))
        return heads + params[name]["bias"].astype(x.dtype)[None, None]

    q, k, v = project("query"), project("key"), project("value")
    q = q * q.shape[-1] ** -0.5
    # jax.nn.dot_product_attention took 1.01 to 1.34 times as long, forward and backward on a CPU (jax 0.10.2, 2 cores).
    logits = jnp.einsum("ntkh,nskh->nkts", q, k, preferred_element_type=jnp.float32)
    mixed = jnp.einsum("nkts,nskh->ntkh", jax.nn.softmax(logits).astype(x.dtype), v)
    y = jnp.einsum("ntkh,khd->ntd", mixed, params["out"]["kernel"].astype(x.dtype))
    return y + as_row(params["out"]["bias"], y)


def _layer_norm_spec(width: int) -> Spec:
    return {"scale": Leaf((width,), constant(1.0)), "bias": Leaf((width,), constant(0.0))}


def _layer_norm(params: Params, x: Array) -> Array:
    y = x.astype(jnp.float32)
    y = y - y.mean(axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + EPSILON)
    return (y * as_row(params["scale"], y) + as_row(params["bias"], y)).astype(x.dtype)
