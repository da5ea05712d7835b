"""The process that tries the devices: `python -P trial_child.py FILE`. Imports jax and nothing of ours.

A line of JSON is added to FILE as each stage begins and ends, so that whoever waits in vain can tell where it stands.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

_EDGE = 512  # of the matrices
_PIXELS, _CHANNELS = 32, 8
_EXCHANGED = 8 << 20  # float32 values of each device: 32 MiB, enough for every path that a gradient takes


def main(path: Path) -> None:
    """Goes through the stages; what it raises ends it."""
    with path.open("a", encoding="utf-8") as file:

        def tell(**values: Any) -> None:
            file.write(json.dumps(values) + "\n")
            file.flush()

        def stage(name: str, *work: Any) -> Any:
            tell(stage=name)
            began = time.perf_counter()
            made = work[0](*work[1:])
            tell(stage=name, seconds=round(time.perf_counter() - began, 3))
            return made

        try:
            devices = stage("start", _devices)
            tell(backend=devices[0].platform, devices=[device.device_kind for device in devices])
            stage("compute", _compute, devices)
            if len(devices) > 1:
                stage("exchange", _exchange, devices)
        except Exception as error:  # noqa: BLE001
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            tell(error=(lines[0] if lines else type(error).__name__)[:500])


def _devices() -> Any:
    import jax

    return jax.devices()


def _compute(devices: Any) -> None:
    """A matrix product and a convolution on each device, which load cuBLAS, cuDNN and the assembler."""
    import jax
    import jax.numpy as jnp

    places = _spread(devices)

    def work() -> Any:
        a = jnp.ones((len(devices), _EDGE, _EDGE), jnp.bfloat16)
        product = jnp.einsum("dij,djk->dik", a, a, preferred_element_type=jnp.float32)
        pictures = jnp.ones((len(devices), _CHANNELS, _PIXELS, _PIXELS))
        filters = jnp.ones((_CHANNELS, _CHANNELS, 3, 3))
        convolved = jax.lax.conv(pictures, filters, (1, 1), "VALID")
        return jnp.stack([product.min((1, 2)), product.max((1, 2)), *_ends(convolved)], axis=1)

    found = jax.jit(work, out_shardings=places)()
    expected = (_EDGE, _EDGE, 9 * _CHANNELS, 9 * _CHANNELS)
    for shard in found.addressable_shards:
        if tuple(values := shard.data[0].tolist()) != expected:
            raise ArithmeticError(f"{shard.device} computes {values}, and not {list(expected)}")


def _ends(array: Any) -> Any:
    return array.min((1, 2, 3)), array.max((1, 2, 3))


def _exchange(devices: Any) -> None:
    """An all-reduce, as of gradients: every device gets the sum of what all of them hold."""
    import jax
    import jax.numpy as jnp

    places, n = _spread(devices), len(devices)
    whole = jax.sharding.NamedSharding(places.mesh, jax.sharding.PartitionSpec())

    def own() -> Any:
        return jnp.broadcast_to(jnp.arange(1.0, n + 1)[:, None], (n, _EXCHANGED))

    summed = jax.jit(lambda values: values.sum(0), in_shardings=(places,), out_shardings=whole)(
        jax.jit(own, out_shardings=places)()
    )
    expected = n * (n + 1) / 2
    for shard in summed.addressable_shards:
        low, high = float(shard.data.min()), float(shard.data.max())
        if not low == high == expected:
            raise ArithmeticError(f"{shard.device} got sums from {low:g} to {high:g}, and all are {expected:g}")


def _spread(devices: Any) -> Any:
    """The first axis over all devices."""
    import jax
    import numpy as np

    return jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), ("d",)), jax.sharding.PartitionSpec("d"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
