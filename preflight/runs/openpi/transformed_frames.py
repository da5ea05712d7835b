"""All frames as the user's transforms make them, in blocks: a `ValueSource`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int64

from preflight.data.streamed_stats import ArrayBlock

_BLOCK = 512  # frames


class TransformedFrames:
    """Runs the transforms anew in each pass; they are slow beside whatever is done with the values.

    Args:
        frames: How many there are.
        transformed: Gives "state" float[n, d] and "actions" float[n, h, d] of some frames.
    """

    def __init__(self, frames: int, transformed: Callable[[np.ndarray], dict[str, np.ndarray]]) -> None:
        self.frames = frames
        self._transformed = transformed
        first = transformed(np.arange(1))
        self.widths = {name: array.shape[-1] for name, array in first.items()}
        self.horizon = first["actions"].shape[1]

    def blocks(self) -> Iterator[ArrayBlock]:
        """All frames, once."""
        for start in range(0, self.frames, _BLOCK):
            yield ArrayBlock(self._transformed(np.arange(start, min(start + _BLOCK, self.frames))))

    def drawn(self, frames: Int64[np.ndarray, " k"], steps: Int64[np.ndarray, " k"]) -> dict[str, np.ndarray]:
        """The state and one action of some frames: float[k, s] and float[k, d]."""
        parts = []
        for start in range(0, len(frames), _BLOCK):
            values = self._transformed(frames[start : start + _BLOCK])
            actions = values["actions"]
            parts.append((values["state"], actions[np.arange(len(actions)), steps[start : start + _BLOCK]]))
        state, chosen = zip(*parts, strict=True)
        return {"state": np.concatenate(state), "actions": np.concatenate(chosen)}
