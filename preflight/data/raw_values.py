"""State and action chunks as samples hold them before they are normalised; no picture is opened for them."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int64

from preflight.config.schema import DataConfig, ModelConfig
from preflight.data.actions import chunk_stats, delta_mask
from preflight.data.columns import read_columns
from preflight.data.dataset import SampleDataset, resolve_root
from preflight.data.episodes import Episodes, read_episodes
from preflight.data.metadata import DatasetInfo, read_info
from preflight.data.normalize import NormStats, compute
from preflight.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawValues:
    """The columns that a run normalises, and what makes chunks of them."""

    state: Float32[np.ndarray, "n s"]  # of all frames
    actions: Float32[np.ndarray, "n d"]  # of all frames
    episodes: Episodes
    mask: Bool[np.ndarray, " m"]  # the action dimensions that become relative to the state
    horizon: int  # actions of a chunk

    def at(self, frames: Int64[np.ndarray, " k"]) -> dict[str, np.ndarray]:
        """What `SampleDataset` normalises for some frames.

        Args:
            frames: Indices of frames.

        Returns:
            "state" float32[k, s] and "actions" float32[k, horizon, d].
        """
        last = self.episodes.to_index[np.searchsorted(self.episodes.to_index, frames, side="right")] - 1
        state = self.state[frames]
        actions = self.actions[np.minimum(frames[:, None] + np.arange(self.horizon), last[:, None])]
        width = len(self.mask)
        actions[..., :width] -= np.where(self.mask, state[:, None, :width], np.float32(0))
        return {"state": state, "actions": actions}

    def stats(self) -> dict[str, NormStats]:
        """The statistics that `SampleDataset` computes where its config names no file."""
        bounds = self.episodes.from_index, self.episodes.to_index
        return {
            "state": compute(self.state),
            "actions": chunk_stats(self.actions, self.state, *bounds, self.horizon, self.mask),
        }


def raw_values_of(dataset: SampleDataset) -> RawValues:
    """The values of a dataset that is open; nothing is read again."""
    return RawValues(
        state=dataset.column("state"),
        actions=dataset.column("actions"),
        episodes=dataset.episodes,
        mask=delta_mask(dataset.config.delta_actions),
        horizon=dataset.model.action_horizon,
    )


def read_raw_values(config: DataConfig, model: ModelConfig) -> RawValues:
    """Reads state and actions alone, whatever is wrong with cameras, prompts or a file of statistics.

    Args:
        config: Which dataset, and which of its columns.
        model: Gives the chunks their length.

    Returns:
        The values of all frames.

    Raises:
        UsageError: if the config names no dataset or an impossible delta mask.
        DataError: if the dataset is missing or damaged, or lacks a column.
    """
    info = read_info(resolve_root(config))
    episodes = read_episodes(info)
    keys = (config.state, config.actions)
    columns = read_columns(info, episodes, dict.fromkeys(keys, np.dtype(np.float32)))
    state, actions = (columns[key] for key in keys)
    mask = delta_mask(config.delta_actions)
    if len(mask) > min(state.shape[1], actions.shape[1]):
        raise UsageError(
            f"data.delta_actions covers {len(mask)} dimensions, but {config.state!r} has {state.shape[1]} and "
            f"{config.actions!r} has {actions.shape[1]}"
        )
    return RawValues(state=state, actions=actions, episodes=episodes, mask=mask, horizon=model.action_horizon)


def read_task_indices(info: DatasetInfo, episodes: Episodes) -> tuple[int, ...]:
    """The tasks that frames belong to, from the column task_index; none where the dataset has no such column.

    Args:
        info: The dataset.
        episodes: Its episodes.

    Returns:
        Each index once, rising.

    Raises:
        DataError: if the column is damaged.
    """
    if "task_index" not in info.features:
        return ()
    column = read_columns(info, episodes, {"task_index": np.dtype(np.int64)})["task_index"]
    return tuple(np.unique(column).tolist())
