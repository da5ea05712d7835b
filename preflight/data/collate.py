"""Samples to a batch and back: a batch is one block of memory, so that a worker hands over one descriptor.

A batch of nested arrays would cost a descriptor and a mapping for each array; loaders die of that ("Too many open
files", https://github.com/facebookresearch/detectron2/issues/3953).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from preflight.errors import DataError

# A cache line: arrays so aligned can be taken over by XLA without a copy.
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a batch."""

    path: tuple[str, ...]  # keys that lead to it; () where the sample is an array itself
    dtype: np.dtype
    shape: tuple[int, ...]  # with the batch axis
    offset: int  # bytes from the start of the block
    once: bool = False  # stored once for all samples, given out as a broadcast view


def pack(
    indices: Sequence[int], samples: Sequence[Any], allocate: Callable[[int], np.ndarray]
) -> tuple[tuple[Leaf, ...], np.ndarray]:
    """Stacks samples into one block of memory.

    An array that is one and the same object in all samples (the black picture of a camera that the robot lacks) is
    stored once: batches of a robot with one camera then take a third of the memory.

    Args:
        indices: The samples' indices, for messages.
        samples: Nested dicts of arrays or scalars, or arrays; all alike.
        allocate: Makes uint8[n] of n bytes.

    Returns:
        The batch's arrays, and the block that holds them.

    Raises:
        DataError: if a sample holds something else, or differs from the first one, naming it and the key.
    """
    flat = [list(_leaves(sample, ())) for sample in samples]
    leaves: list[Leaf] = []
    size = 0
    for number, (path, value) in enumerate(flat[0]):
        array = _array(value, path, indices[0])
        once = len(samples) > 1 and array.ndim > 0 and all(_is_same(found, number, value) for found in flat)
        leaves.append(Leaf(path, array.dtype, (len(samples), *array.shape), size, once))
        size += -(-(1 if once else len(samples)) * array.nbytes // _ALIGNMENT) * _ALIGNMENT
    block = allocate(size)
    views = [_stored(leaf, block) for leaf in leaves]
    for row, (index, found) in enumerate(zip(indices, flat, strict=True)):
        if [path for path, _ in found] != [leaf.path for leaf in leaves]:
            raise DataError(f"sample {index} has other keys than sample {indices[0]}: {_names(found)}")
        for (path, value), leaf, view in zip(found, leaves, views, strict=True):
            if leaf.once and row:
                continue
            array = _array(value, path, index)
            if array.shape != leaf.shape[1:] or array.dtype != leaf.dtype:
                raise DataError(
                    f"sample {index}: {_name(path)} is {array.dtype}{list(array.shape)}, "
                    f"but {leaf.dtype}{list(leaf.shape[1:])} in sample {indices[0]}"
                )
            view[row] = array
    return tuple(leaves), block


def unpack(leaves: Sequence[Leaf], block: np.ndarray) -> Any:
    """Gives a packed batch's arrays as views into its block, which they keep alive; those stored once are read-only.

    Args:
        leaves: The batch's arrays.
        block: The block that holds them.

    Returns:
        A batch nested like its samples, each array with the leading batch axis.
    """
    if len(leaves) == 1 and not leaves[0].path:
        return _view(leaves[0], block)
    batch: dict[str, Any] = {}
    for leaf in leaves:
        place = batch
        for key in leaf.path[:-1]:
            place = place.setdefault(key, {})
        place[leaf.path[-1]] = _view(leaf, block)
    return batch


def _leaves(sample: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(sample, Mapping):
        return [leaf for key, value in sample.items() for leaf in _leaves(value, (*path, key))]
    return [(path, sample)]


def _array(value: Any, path: tuple[str, ...], index: int) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"sample {index}: {_name(path)} is no array ({error})") from error
    if array.dtype.kind in "OUSMm":
        raise DataError(f"sample {index}: {_name(path)} holds {type(value).__name__}, not numbers")
    return array


def _is_same(found: list[tuple[tuple[str, ...], Any]], number: int, value: Any) -> bool:
    return number < len(found) and found[number][1] is value


def _stored(leaf: Leaf, block: np.ndarray) -> np.ndarray:
    shape = (1, *leaf.shape[1:]) if leaf.once else leaf.shape
    size = math.prod(shape) * leaf.dtype.itemsize
    return block[leaf.offset : leaf.offset + size].view(leaf.dtype).reshape(shape)


def _view(leaf: Leaf, block: np.ndarray) -> np.ndarray:
    stored = _stored(leaf, block)
    return np.broadcast_to(stored, leaf.shape) if leaf.once else stored


def _name(path: tuple[str, ...]) -> str:
    return "/".join(map(str, path)) or "the array"


def _names(found: list[tuple[tuple[str, ...], Any]]) -> str:
    return ", ".join(_name(path) for path, _ in found)
