"""Low-rank adapters beside frozen weights, as openpi has them.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685. An adapter adds the product of two
narrow matrices to a weight's last two axes. Two habits of openpi's are kept, since its checkpoints were trained with
them: both matrices start as small noise, so that an untrained adapter changes the model a little, and the feed-forward
adapters are not scaled.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from preflight.models.params import Leaf, Params, Spec, normal

_INIT = normal(0.01)

# Einsum equations of activations with a weight, and with the two matrices of its adapter, whose rank is the axis r.
Equations = tuple[str, str, str]


def adapted(name: str, weight: Leaf, rank: int) -> Spec:
    """A weight and its adapter, by openpi's names.

    Args:
        name: The weight's; the adapter's matrices carry it as prefix, unless it is "w".
        weight: Of shape [..., in, out].
        rank: Of the adapter; 0 for none.

    Returns:
        `name`, and with a rank `lora_a` [..., in, rank] and `lora_b` [..., rank, out].
    """
    if not rank:
        return {name: weight}
    *lead, fan_in, fan_out = weight.shape
    prefix = "" if name == "w" else f"{name}_"
    return {
        name: weight,
        f"{prefix}lora_a": Leaf((*lead, fan_in, rank), _INIT),
        f"{prefix}lora_b": Leaf((*lead, rank, fan_out), _INIT),
    }


def project(params: Params, x: Array, equations: Equations, scale: float) -> Array:
    """The product of activations with a weight of attention and its adapter, in the type of the activations.

    Args:
        params: `w`, with or without `lora_a` and `lora_b`.
        x: Activations.
        equations: Which axes meet.
        scale: Factor of the adapter.
    """
    whole, down, up = equations
    y = jnp.einsum(whole, x, params["w"].astype(x.dtype))
    if "lora_a" not in params:
        return y
    low = jnp.einsum(down, x, params["lora_a"].astype(x.dtype))
    return y + jnp.einsum(up, low, params["lora_b"].astype(x.dtype)) * scale


def matmul(params: Params, name: str, x: Float[Array, "*b i"], *index: int) -> Float[Array, "*b o"]:
    """The product of activations with a weight of the feed-forward block and its adapter, which is not scaled.

    Args:
        params: The weight by its name, with or without its adapter.
        name: The weight's.
        x: Activations.
        index: Which matrix, where several are stacked.
    """

    def dot(name: str, x: Array) -> Array:
        return x @ params[name].astype(x.dtype)[index]

    if f"{name}_lora_a" not in params:
        return dot(name, x)
    return dot(name, x) + dot(f"{name}_lora_b", dot(f"{name}_lora_a", x))
