"""A robot's inputs for openpi's loader: in a module of its own, since openpi's spawned workers import it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RobotInputs:
    """Pictures as uint8[h, w, 3] in openpi's slots, as its own robots' inputs make them; slots without one are masked.

    Args:
        slots: The model's.
    """

    slots: tuple[str, ...]

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """One sample."""
        pictures = {slot: _picture(data[slot]) for slot in self.slots if slot in data}
        black = np.zeros_like(next(iter(pictures.values())))
        return {
            "image": {slot: pictures.get(slot, black) for slot in self.slots},
            "image_mask": {slot: np.bool_(slot in pictures) for slot in self.slots},
            "state": np.asarray(data["state"]),
            "actions": np.asarray(data["actions"]),
        }


@dataclass(frozen=True)
class OwnData:
    """In the place of a factory of data configs: gives the one that it was given.

    Args:
        data: An `openpi.training.config.DataConfig`.
    """

    data: Any = field(repr=False)

    def create(self, assets_dirs: Any, model: Any) -> Any:
        """As openpi's factories are called."""
        return self.data


def _picture(image: Any) -> np.ndarray:
    values = np.asarray(image)
    if np.issubdtype(values.dtype, np.floating):
        values = (255 * values).astype(np.uint8)
    return np.moveaxis(values, 0, -1) if values.shape[0] == 3 else values
