"""The process that compiles: `python -P compile_child.py FOLDER`. Imports jax and nothing of ours.

FOLDER holds `step` (a serialized `jax.export.Exported`), `mesh` (the sizes of its mesh's axes by name, as JSON; none
for a step on one device) and, for a GPU that is not here, `target` (XLA's description of it); `answer` is written there
as JSON.
"""

from __future__ import annotations

import json
import math
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Compiles, and writes what came of it."""
    answer = folder / "answer"
    try:
        text = json.dumps(_compile(folder))
    except Exception as error:  # noqa: BLE001
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        text = json.dumps({"error": first[:300]})
    # In one go: half an answer is none.
    answer.with_suffix(".part").write_text(text, encoding="utf-8")
    answer.with_suffix(".part").rename(answer)


def _compile(folder: Path) -> dict[str, Any]:
    import jax
    import numpy as np
    from jax import export

    axes = json.loads((folder / "mesh").read_text(encoding="utf-8"))
    devices = _devices(folder, math.prod(axes.values()))
    if isinstance(devices, dict):
        return devices
    device = devices[0]
    exported = export.deserialize(bytearray((folder / "step").read_bytes()))
    if axes:
        mesh = jax.sharding.Mesh(np.array(devices).reshape(tuple(axes.values())), tuple(axes))
        places = exported.in_shardings_jax(mesh)
    else:
        places = (jax.sharding.SingleDeviceSharding(device),) * len(exported.in_avals)
    avals = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=place)
        for aval, place in zip(exported.in_avals, places, strict=True)
    ]
    arguments, _ = jax.tree.unflatten(exported.in_tree, avals)
    lowered = jax.jit(exported.call, donate_argnums=1).lower(*arguments)
    began = time.perf_counter()
    memory = _sizes(lowered.compile().memory_analysis(), folder)
    if memory is None:
        return {"unknown": f"jax {jax.__version__} does not say what a step for {device.device_kind} takes"}
    # Kilobytes on Linux, bytes on a Mac.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        **memory,
        "compiler": f"jax {jax.__version__} for {device.device_kind}",
        "seconds": round(time.perf_counter() - began, 2),
        "rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1),
    }


def _sizes(memory: Any, folder: Path) -> dict[str, int] | None:
    """The sizes of a compiled step's buffers; from XLA's own record of them where jax gives no analysis (0.5.3)."""
    if memory is not None:
        return {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliases": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
        }
    records = sorted((folder / "dump").glob("*buffer-assignment.txt"), key=lambda path: path.stat().st_size)
    return sizes_of_allocations(records[-1].read_text(errors="replace")) if records else None


def sizes_of_allocations(text: str) -> dict[str, int]:
    """Adds up the allocations of a `buffer-assignment.txt`, which XLA writes under `--xla_dump_to`.

    One to a line: `allocation 7: size 4194304, parameter 0, shape |f32[1024,1024]| …, maybe-live-out:`.
    """
    sizes = {"arguments": 0, "outputs": 0, "aliases": 0, "temporaries": 0}
    for match in re.finditer(r"^allocation \d+: size (\d+), (.*):$", text, re.MULTILINE):
        size, what = int(match[1]), match[2]
        is_argument, is_output = "parameter" in what, "maybe-live-out" in what
        sizes["arguments"] += size * is_argument
        sizes["outputs"] += size * is_output
        sizes["aliases"] += size * (is_argument and is_output)
        sizes["temporaries"] += size * ("preallocated-temp" in what)
    return sizes


def _devices(folder: Path, count: int) -> Any:
    """The devices to compile for, or the answer that says what is missing and which extra of ours brings it."""
    import jax

    if not (folder / "target").exists():
        try:
            found = jax.devices()
        except (RuntimeError, AssertionError) as error:
            why = next(iter(str(error).splitlines()), "") or type(error).__name__
            return {"missing": f"jax finds no GPU to compile for ({why[:200]})", "extra": "cuda12"}
        if len(found) < count:
            return {"unknown": f"jax finds {len(found)} devices to compile for, and the step is for {count}"}
        return found[:count]
    import importlib.util
    from importlib import metadata

    try:
        found = any(importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13))
    except ModuleNotFoundError:
        found = False
    if not found:
        return {"missing": "XLA's compiler for GPUs (JAX's CUDA plugin) is not installed", "extra": "aot"}
    for name in ("jax-cuda12-plugin", "jax-cuda13-plugin"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if version.split(".")[:2] != jax.__version__.split(".")[:2]:
            why = f"JAX's CUDA plugin is {version}, jax is {jax.__version__}: they must be of one version"
            return {"missing": why, "extra": "aot"}
    from jax.experimental import topologies

    description = (folder / "target").read_text(encoding="utf-8")
    # Slices, hosts of each and GPUs of each.
    shape = f"1x1x{count}"
    topology = topologies.get_topology_desc(platform="cuda", target_config=description, topology=shape)
    return topology.devices


if __name__ == "__main__":
    main(Path(sys.argv[1]))
