"""Floating-point operations of a traced function, loops multiplied out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one call, a multiplication and an addition counted as two."""

    matmul: float  # matrix products and convolutions: what tensor cores do
    other: float  # one for each element that any other operation writes
    unbounded_loops: int  # loops without a known length, counted as if they ran once


def count_flops(jaxpr: Any) -> Flops:
    """Counts the operations of a jaxpr.

    XLA's own cost analysis counts the body of a loop once, however often it runs; pi0's layers are such a loop, which
    made it say 26 TFLOP of a step of 478. Here a `scan` counts as often as it is long, whatever is recomputed in
    the backward pass counts again, and of a branch the most expensive arm counts.

    Args:
        jaxpr: Of `jax.make_jaxpr` or a traced function, closed or not.
    """
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    matmul = other = 0.0
    unbounded = 0
    for equation in inner.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            matmul += _dot(equation)
            continue
        if name == "conv_general_dilated":
            matmul += _convolution(equation)
            continue
        arms = [count_flops(body) for body in _bodies(equation)]
        if not arms:
            other += sum(math.prod(out.aval.shape) for out in equation.outvars if hasattr(out.aval, "shape"))
            continue
        if name == "cond":
            arms = [max(arms, key=lambda arm: arm.matmul + arm.other)]
        times = equation.params["length"] if name == "scan" else 1
        matmul += times * sum(arm.matmul for arm in arms)
        other += times * sum(arm.other for arm in arms)
        unbounded += sum(arm.unbounded_loops for arm in arms) + (name == "while")
    return Flops(matmul, other, unbounded)


def _bodies(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(item, "jaxpr", item), "eqns"):
                yield item


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / out_features
