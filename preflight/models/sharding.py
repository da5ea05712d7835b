"""Where a model's activations lie while its step is traced for a mesh of devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeAlias, TypeVar

import jax

Tree = TypeVar("Tree")
Mesh: TypeAlias = (
    jax.sharding.Mesh | jax.sharding.AbstractMesh
)  # abstract: a step is traced for devices that are not here

_MESH: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextlib.contextmanager
def activations_on(mesh: Mesh | None) -> Iterator[None]:
    """Divides the activations of what is traced inside over the mesh, by the batch; with None they are left to XLA."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def activation_mesh() -> Mesh | None:
    """The mesh of `activations_on`, for a stack that has its own way to constrain them."""
    return _MESH.get()


def by_batch(tree: Tree) -> Tree:
    """Arrays with a leading batch axis, divided over all axes of the mesh; as they are outside of `activations_on`.

    Where parameters are sharded, XLA could as well divide the features over the same devices and gather every
    activation; this has it gather a layer's parameters instead, which is what FSDP means. openpi constrains the same
    places (openpi.training.sharding, `activation_sharding_constraint`).
    """
    mesh = _MESH.get()
    if mesh is None:
        return tree
    spec = jax.sharding.PartitionSpec(mesh.axis_names)
    return jax.lax.with_sharding_constraint(tree, jax.sharding.NamedSharding(mesh, spec))
