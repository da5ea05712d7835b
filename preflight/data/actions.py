"""Action chunks: which frames' actions belong to a sample, and actions relative to the state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64


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


def chunk_values(
    actions: Float32[np.ndarray, " n"],
    state: Float32[np.ndarray, " n"],
    from_index: Int64[np.ndarray, " e"],
    to_index: Int64[np.ndarray, " e"],
    horizon: int,
    rows: int,
) -> Iterator[Float32[np.ndarray, " k"]]:
    """Makes one relative dimension's values of all action chunks, after `to_delta`.

    They are exactly the values that training sees, so an episode's last action comes as often as chunks repeat it.

    Args:
        actions: The dimension's action in each frame.
        state: Its state in each frame.
        from_index: First frame of each episode.
        to_index: One after the last frame of each episode.
        horizon: Length of a chunk.
        rows: Chunks in one array.

    Yields:
        The values of `rows` frames, the last of fewer; an array is valid until the next is asked for.
    """
    lengths = to_index - from_index
    # Each episode with its last action repeated behind it: a chunk is then a window.
    starts = from_index + np.arange(len(lengths)) * (horizon - 1)
    padded = np.empty(len(actions) + len(lengths) * (horizon - 1), dtype=actions.dtype)
    for start, first, last in zip(starts.tolist(), from_index.tolist(), to_index.tolist(), strict=True):
        padded[start : start + last - first] = actions[first:last]
        padded[start + last - first : start + last - first + horizon - 1] = actions[last - 1]
    windows = np.lib.stride_tricks.sliding_window_view(padded, horizon).T
    state = np.ascontiguousarray(state)
    buffer = np.empty((horizon, rows), dtype=actions.dtype)
    filled = 0
    for start, first, last in zip(starts.tolist(), from_index.tolist(), to_index.tolist(), strict=True):
        at = first
        while at < last:
            take = min(last - at, rows - filled)
            window = windows[:, start + at - first : start + at - first + take]
            np.subtract(window, state[at : at + take], out=buffer[:, filled : filled + take])
            at, filled = at + take, filled + take
            if filled == rows:
                yield buffer.reshape(-1)
                filled = 0
    if filled:
        yield buffer[:, :filled].reshape(-1)


def occurrences(
    from_index: Int64[np.ndarray, " e"], to_index: Int64[np.ndarray, " e"], horizon: int
) -> Int64[np.ndarray, " n"]:
    """Counts the places in chunks that hold each frame's action.

    Args:
        from_index: First frame of each episode.
        to_index: One after the last frame of each episode.
        horizon: Length of a chunk.

    Returns:
        For each frame at least 1; their sum is n * horizon.
    """
    lengths = to_index - from_index
    position = np.arange(int(lengths.sum())) - np.repeat(from_index, lengths)
    counts = np.minimum(position + 1, horizon)
    # Frame t before the end has max(0, horizon - t) places at or past the end: an arithmetic series over t.
    shown = np.minimum(lengths, horizon)
    counts[to_index - 1] = shown * horizon - shown * (shown - 1) // 2
    return counts
