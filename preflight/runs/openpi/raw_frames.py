"""Frames as LeRobot's own dataset hands them to a user's transforms, with blank pictures in place of decoded ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preflight.data.actions import action_chunk_indices
from preflight.data.columns import read_columns
from preflight.data.episodes import read_episodes
from preflight.data.files import read_json_lines
from preflight.data.metadata import read_info

# A side of the blank pictures. Transforms before the model's own resize take a picture of any size; a small one keeps
# some thousand frames a matter of a second.
_SIDE = 16


class RawFrames:
    """The frames of a dataset without its pictures: columns as torch tensors, each camera a plain grey.

    Args:
        root: The dataset's folder.
        chunks: Keys that are given over `horizon` frames, as LeRobot's `delta_timestamps` give them.
        horizon: Frames of a chunk.

    Raises:
        DataError: The dataset is damaged.
    """

    def __init__(self, root: Path, *, chunks: Sequence[str], horizon: int) -> None:
        self.info = read_info(root)
        self._episodes = read_episodes(self.info)
        self._chunks, self._horizon = tuple(chunks), horizon
        numeric = {
            key: np.dtype(feature.dtype)
            for key, feature in self.info.features.items()
            if feature.dtype not in ("video", "image", "string")
        }
        self._columns = read_columns(self.info, self._episodes, numeric)

    def __len__(self) -> int:
        return self.info.total_frames

    @property
    def tasks(self) -> tuple[str, ...]:
        """The texts of the tasks, by task_index."""
        return self._episodes.tasks

    def listed_tasks(self) -> set[int]:
        """The task indices that the dataset has a text for, be it empty."""
        return {row["task_index"] for row in read_json_lines(self.info.root / "meta" / "tasks.jsonl")}

    def frame_of_task(self, task: int) -> int | None:
        """Some frame of a task; None where no frame has it."""
        found = np.flatnonzero(self._columns["task_index"][:, 0] == task)
        return int(found[0]) if found.size else None

    def used_tasks(self) -> list[int]:
        """The task indices that frames have."""
        return np.unique(self._columns["task_index"]).tolist() if "task_index" in self._columns else []

    def item(self, frame: int, *, shades: Mapping[str, float] | None = None, full_size: bool = False) -> dict[str, Any]:
        """One frame.

        Args:
            frame: Its index.
            shades: The grey of a camera's picture, 0 to 1; others are black.
            full_size: Whether pictures have the camera's size; else they are small.

        Returns:
            By key, a tensor as LeRobot gives it: pictures float32[3, h, w] in 0 to 1, and the text "task".
        """
        import torch

        episode = self._episodes.of_frame(frame)
        rows = action_chunk_indices(frame, int(self._episodes.to_index[episode]), self._horizon)
        item: dict[str, Any] = {}
        for key, column in self._columns.items():
            shape = self.info.features[key].shape
            shape = () if math.prod(shape) == 1 else shape  # LeRobot stores a single value without an axis
            picked = column[rows].reshape(-1, *shape) if key in self._chunks else column[frame].reshape(shape)
            item[key] = torch.from_numpy(np.array(picked))
            if key in self._chunks:
                item[f"{key}_is_pad"] = torch.from_numpy(np.arange(self._horizon) != rows - frame)
        for key in self.info.camera_keys:
            height, width = self.info.features[key].shape[:2] if full_size else (_SIDE, _SIDE)
            item[key] = torch.full((3, height, width), (shades or {}).get(key, 0.0))
        if "task_index" in self._columns:
            task = int(self._columns["task_index"][frame, 0])
            item["task"] = self.tasks[task] if 0 <= task < len(self.tasks) else ""
        return item
