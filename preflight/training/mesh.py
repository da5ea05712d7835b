"""The mesh of devices: each batch is divided over all of them, and one copy of the state over its axis `fsdp`.

Names and rule are openpi's (openpi.training.sharding), so that its models' own constraints fit this mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
from jax.experimental import mesh_utils

from preflight.errors import UsageError

AnyMesh: TypeAlias = jax.sharding.Mesh | jax.sharding.AbstractMesh

BATCH_AXIS = "batch"
FSDP_AXIS = "fsdp"

# Smaller arrays, and vectors, are held whole by every device: gathering them costs more than they take
# (openpi.training.sharding.fsdp_sharding, `min_size_mbytes`).
MIN_SHARDED_BYTES = 4 * 2**20


def require_divisible(batch_size: int, fsdp_devices: int, num_devices: int) -> None:
    """Refuses numbers that do not go together.

    Args:
        batch_size: Samples of a batch, over all devices.
        fsdp_devices: Devices that share one copy of the state.
        num_devices: All of them, of every process.

    Raises:
        UsageError: The shards do not divide the devices, or the devices the batch.
    """
    if num_devices % fsdp_devices:
        divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
        near = max((n for n in divisors if n <= fsdp_devices), default=1)
        raise UsageError(
            f"fsdp_devices {fsdp_devices} does not divide {num_devices} devices",
            f"--set fsdp_devices={near}, or another of {', '.join(map(str, divisors))}; all devices that are visible "
            "are used, on GPUs those of CUDA_VISIBLE_DEVICES",
        )
    if batch_size % num_devices:
        near = max(num_devices, round(batch_size / num_devices) * num_devices)
        raise UsageError(
            f"batch_size {batch_size} does not divide over {num_devices} devices",
            f"--set batch_size={near}, or fewer devices: on GPUs, CUDA_VISIBLE_DEVICES says which",
        )


def make_mesh(fsdp_devices: int = 1, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh with the axes `batch` and `fsdp`.

    Args:
        fsdp_devices: The size of the axis `fsdp`.
        devices: All devices of all processes without it.

    Raises:
        UsageError: The number does not divide the devices.
    """
    devices = jax.devices() if devices is None else devices
    require_divisible(len(devices), fsdp_devices, len(devices))
    shape = (len(devices) // fsdp_devices, fsdp_devices)
    # Not jax.make_mesh: from jax 0.9 on its axes are explicit, and every array would have to say where it lies.
    return jax.sharding.Mesh(mesh_utils.create_device_mesh(shape, devices), (BATCH_AXIS, FSDP_AXIS))


def planned_mesh(fsdp_devices: int, num_devices: int) -> jax.sharding.AbstractMesh:
    """The mesh of `make_mesh` on devices that are not here: a step can be traced for it, and compiled, not run.

    Args:
        fsdp_devices: The size of the axis `fsdp`.
        num_devices: All devices.

    Raises:
        UsageError: The number does not divide the devices.
    """
    require_divisible(num_devices, fsdp_devices, num_devices)
    return jax.sharding.AbstractMesh((num_devices // fsdp_devices, fsdp_devices), (BATCH_AXIS, FSDP_AXIS))


def replicated(mesh: AnyMesh) -> jax.sharding.NamedSharding:
    """Whole on every device."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def by_sample(mesh: AnyMesh) -> jax.sharding.NamedSharding:
    """Divided over all devices by the leading axis."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))


def shards_state(mesh: AnyMesh) -> bool:
    """Whether any of the state is divided at all."""
    return bool(mesh.shape.get(FSDP_AXIS, 1) > 1)


def shard(array: Any, mesh: AnyMesh) -> jax.sharding.NamedSharding:
    """Where a parameter, its optimizer state or its average lies, by openpi's rule.

    The largest axis that the shards divide is divided (the last of equal ones); vectors, arrays below
    `MIN_SHARDED_BYTES` and those without such an axis are replicated.

    Args:
        array: An array or what says its shape and dtype.
        mesh: The mesh.
    """
    num_shards = mesh.shape.get(FSDP_AXIS, 1)
    bytes_ = array.size * array.dtype.itemsize
    divisible = [axis for axis, size in enumerate(array.shape) if size % num_shards == 0]
    if num_shards == 1 or array.ndim < 2 or bytes_ < MIN_SHARDED_BYTES or not divisible:
        return replicated(mesh)
    largest = max(divisible, key=lambda axis: (array.shape[axis], axis))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * largest, FSDP_AXIS))


def local_rows(batch_size: int, mesh: jax.sharding.Mesh) -> slice:
    """The samples of each batch that this process loads; all of them where it is the only one.

    Args:
        batch_size: Samples of a batch, over all devices.
        mesh: The mesh; devices of one process lie side by side.
    """
    owners = [device.process_index for device in mesh.devices.flat]
    mine = [place for place, owner in enumerate(owners) if owner == jax.process_index()]
    each = batch_size // len(owners)
    return slice(mine[0] * each, (mine[-1] + 1) * each)


def put_batch(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """Puts a batch on the devices, without waiting for the copy.

    Args:
        batch: This process's samples (`local_rows`), arrays with a leading batch axis.
        mesh: The mesh.

    Returns:
        The global batch, of which each process holds its own samples.
    """
    sharding = by_sample(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
