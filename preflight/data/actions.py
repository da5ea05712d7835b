"""Action chunks: which frames' actions belong to a sample, and actions relative to the state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64

from preflight.data.normalize import NormStats, compute


def delta_mask(dims: Sequence[int]) -> Bool[np.ndarray, " m"]:
    """Expands openpi's mask notation, e.g. (6, -1, 6, -1) for two arms with absolute grippers.

    Args:
        dims: n > 0 for n dimensions relative to the state, n < 0 for |n| absolute ones.

    Returns:
        True where a dimension is relative.
    """
    return np.repeat(np.array([n > 0 for n in dims], dtype=bool), [abs(n) for n in dims])


def action_chunk_indices(index: int, to_index: int, horizon: int) -> Int64[np.ndarray, " horizon"]:
    """Gives the frames whose actions make a sample's chunk; past the episode's end its last frame is repeated.

    Args:
        index: The sample's frame.
        to_index: One after its episode's last frame.
        horizon: Length of the chunk.

    Returns:
        Indices of frames, as LeRobot's delta_timestamps of 0, 1/fps, … give them.
    """
    return np.minimum(np.arange(index, index + horizon, dtype=np.int64), to_index - 1)


def to_delta(
    actions: Float32[np.ndarray, "h d"], state: Float32[np.ndarray, " s"], mask: Bool[np.ndarray, " m"]
) -> Float32[np.ndarray, "h d"]:
    """Makes the masked dimensions relative to the state.

    Args:
        actions: A chunk.
        state: The state at its first frame.
        mask: For the first m dimensions whether they become relative; the others stay as they are.

    Returns:
        A new array.
    """
    width = len(mask)
    relative = actions.copy()
    relative[:, :width] -= np.where(mask, state[:width], np.float32(0))
    return relative


def chunk_stats(
    actions: Float32[np.ndarray, "n d"],
    state: Float32[np.ndarray, "n s"],
    from_index: Int64[np.ndarray, " e"],
    to_index: Int64[np.ndarray, " e"],
    horizon: int,
    mask: Bool[np.ndarray, " m"],
) -> NormStats:
    """Computes the statistics of all action chunks of all frames, after `to_delta`.

    They are taken over exactly the values that training sees, so an episode's last action counts as often as chunks
    repeat it. A relative dimension depends on state and action: its [n, horizon] values are made, one dimension at a
    time. An absolute one needs no more than each frame's action, counted as often as it occurs in chunks.

    Args:
        actions: Of all frames.
        state: Of all frames.
        from_index: First frame of each episode.
        to_index: One after the last frame of each episode.
        horizon: Length of a chunk.
        mask: The relative dimensions.

    Returns:
        The statistics of the d action dimensions.
    """
    relative = np.zeros(actions.shape[1], dtype=bool)
    relative[: len(mask)] = mask
    lengths = to_index - from_index
    last = np.repeat(to_index - 1, lengths)
    frames = np.arange(len(actions))
    columns: list[NormStats] = []
    counts = _occurrences(from_index, to_index, horizon)
    for dim in range(actions.shape[1]):
        if relative[dim]:
            values = np.empty((len(actions), horizon), dtype=np.float32)
            for step in range(horizon):
                values[:, step] = actions[np.minimum(frames + step, last), dim] - state[:, dim]
            columns.append(compute(values.reshape(-1, 1)))
        else:
            columns.append(compute(actions[:, dim : dim + 1], counts))
    return NormStats(
        **{name: np.concatenate([getattr(c, name) for c in columns]) for name in ("mean", "std", "q01", "q99")}
    )


def _occurrences(from_index: np.ndarray, to_index: np.ndarray, horizon: int) -> np.ndarray:
    """How many places in chunks hold each frame's action."""
    lengths = to_index - from_index
    position = np.arange(int(lengths.sum())) - np.repeat(from_index, lengths)
    counts = np.minimum(position + 1, horizon)
    # Frame t before the end has max(0, horizon - t) places at or past the end: an arithmetic series over t.
    shown = np.minimum(lengths, horizon)
    counts[to_index - 1] = shown * horizon - shown * (shown - 1) // 2
    return counts
