"""Parameter trees as data: a leaf's shape and initialiser first, the NNX variables from them.

A module's parameters are written down as a nested dict of `Leaf`; `build` makes NNX containers of the same nesting, and
`arrays` gives the plain dict of arrays back that the forward functions compute with. That keeps the tree's paths in one
place, and tracing cheap: no module objects are created or called while a step is traced.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]
Spec = dict[str, Any]  # nested; the leaves are `Leaf`
Params = dict[str, Any]  # nested; the leaves are arrays


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One float32 parameter to be made."""

    shape: tuple[int, ...]
    init: Init


def constant(value: float) -> Init:
    """Every element `value`."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


def normal(stddev: float) -> Init:
    """Normal around zero."""
    return lambda key, shape: jax.random.normal(key, shape, jnp.float32) * stddev


def lecun_normal(fan_in: int) -> Init:
    """Normal, cut off at two standard deviations, with variance 1 / fan_in after the cut (LeCun et al., 1998).

    The fans are named, not read off the shape, since a shape here may carry a leading axis of layers.
    """
    # The standard deviation of a standard normal cut off at -2 and 2.
    stddev = math.sqrt(1.0 / fan_in) / 0.87962566103423978
    return lambda key, shape: jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * stddev


def xavier_uniform(fan_in: int, fan_out: int) -> Init:
    """Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio, 2010)."""
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -limit, limit)


def dense(fan_in: int, fan_out: int, kernel: Init | None = None, bias: Init | None = None) -> Spec:
    """An affine map `x @ kernel + bias`; LeCun-normal kernel and zero bias unless told otherwise."""
    return {
        "kernel": Leaf((fan_in, fan_out), kernel or lecun_normal(fan_in)),
        "bias": Leaf((fan_out,), bias or constant(0.0)),
    }


def stacked(depth: int, spec: Spec) -> Spec:
    """`spec` for `depth` equal layers: each leaf with a leading axis of that length, each layer drawn independently."""
    return {
        name: dataclasses.replace(node, shape=(depth, *node.shape)) if isinstance(node, Leaf) else stacked(depth, node)
        for name, node in spec.items()
    }


def build(spec: Spec, key: jax.Array) -> dict[str, Any]:
    """Makes the parameters of `spec`.

    Args:
        spec: Nested dict of `Leaf`.
        key: A leaf's values depend on this key and on the leaf's path only, never on what else the tree holds.

    Returns:
        By name, an `nnx.Param` for a leaf and an `nnx.Dict` for a nested dict, and so on within.
    """
    hashes = [zlib.crc32(path.encode()) for path in _paths(spec)]
    keys = iter(jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(hashes, jnp.uint32)))
    return _build(spec, keys)


def _paths(spec: Spec, prefix: str = "") -> Iterator[str]:
    for name, node in spec.items():
        if isinstance(node, Leaf):
            yield prefix + name
        else:
            yield from _paths(node, f"{prefix}{name}/")


def _build(spec: Spec, keys: Iterator[jax.Array]) -> dict[str, Any]:
    nodes: dict[str, Any] = {}
    for name, node in spec.items():
        if isinstance(node, Leaf):
            # Drawn with two axes: XLA's CPU compiler takes seconds over random bits with three or more, for each leaf.
            values = node.init(next(keys), (math.prod(node.shape[:-1]), node.shape[-1]))
            nodes[name] = nnx.Param(values.reshape(node.shape))
        else:
            nodes[name] = nnx.Dict(_build(node, keys))
    return nodes


def arrays(tree: Mapping[str, Any]) -> Params:
    """The values of the variables in `tree`, as a plain nested dict."""
    return {name: _value(node) if isinstance(node, nnx.Variable) else arrays(node) for name, node in tree.items()}


def parameter_path(keys: tuple[Any, ...]) -> str:
    """A leaf's path, joined by "/", from its key path in an NNX state: flax versions differ in what they add to it."""
    return "/".join(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))


def _value(variable: nnx.Variable) -> jax.Array:
    # flax 0.12 warns on `.value`; flax 0.10 knows nothing else.
    return variable.get_value() if hasattr(type(variable), "get_value") else variable.value
