"""What the image tower and the language model have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from preflight.models.params import Params
from preflight.models.sharding import by_batch

Carry = TypeVar("Carry")


def linear(params: Params, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
    """`x @ kernel + bias`, computed in the type of `x`."""
    y = x @ params["kernel"].astype(x.dtype)
    return y + as_row(params["bias"], y)


def as_row(vector: Float[Array, " d"], like: Float[Array, "*b d"]) -> Float[Array, "*ones d"]:
    """`vector` in the type and with as many axes as `like`, along its last axis: rank promotion may be an error."""
    return jnp.expand_dims(vector.astype(like.dtype), tuple(range(like.ndim - 1)))


def scan_layers(
    layer: Callable[[Carry, Params], Carry], carry: Carry, params: Params, *, remat: bool, scan: bool
) -> Carry:
    """Applies equal layers one after the other, tracing one of them.

    Args:
        layer: Takes what the layer before returned, and this layer's parameters.
        carry: Input of the first layer.
        params: The parameters of all layers, stacked on a leading axis.
        remat: Keep only each layer's input for the backward pass and compute the rest again.
        scan: Compile one layer and loop over it; otherwise each on its own, which XLA may then optimise across layers.

    Returns:
        What the last layer returned.
    """

    def body(carry: Carry, params: Params) -> tuple[Carry, None]:
        return by_batch(layer(by_batch(carry), params)), None

    if remat:
        # A loop itself keeps XLA from merging the recomputation with the forward pass; without one, barriers must.
        body = jax.checkpoint(body, prevent_cse=not scan, policy=jax.checkpoint_policies.nothing_saveable)
    return jax.lax.scan(body, carry, params, unroll=not scan)[0]
