"""State and action chunks as samples hold them before they are normalised; no picture is opened for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Float32, Int64

from preflight.config.schema import DataConfig, ModelConfig
from preflight.data.actions import chunk_values, delta_mask, occurrences
from preflight.data.columns import read_columns, require_feature
from preflight.data.episodes import Episodes
from preflight.data.metadata import DatasetInfo
from preflight.data.streamed_stats import Pieces
from preflight.errors import UsageError

_PIECE = 1 << 16  # values: half a megabyte in float64, which a core's own cache holds
_BY_EPISODE = ("index", "length", "data_chunk", "data_file", "data_row")
_BLOCK = 1 << 16  # frames that are read before they are looked at, where files are smaller


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawValues:
    """The columns that a run normalises, and what makes chunks of them: a `ValueSource` of one `ValueBlock`."""

    state: Float32[np.ndarray, "n s"]
    actions: Float32[np.ndarray, "n d"]
    from_index: Int64[np.ndarray, " e"]  # first frame of each episode
    to_index: Int64[np.ndarray, " e"]  # one after its last frame
    mask: Bool[np.ndarray, " m"]  # the action dimensions that become relative to the state
    horizon: int  # actions of a chunk

    @property
    def frames(self) -> int:
        """How many there are."""
        return len(self.state)

    @property
    def widths(self) -> Mapping[str, int]:
        """Dimensions of state and actions."""
        return {"state": self.state.shape[1], "actions": self.actions.shape[1]}

    def at(self, frames: Int64[np.ndarray, " k"]) -> dict[str, np.ndarray]:
        """What `SampleDataset` normalises for some frames.

        Args:
            frames: Indices of frames.

        Returns:
            "state" float32[k, s] and "actions" float32[k, horizon, d].
        """
        return self._chosen(frames, np.arange(self.horizon)[None])

    def drawn(self, frames: Int64[np.ndarray, " k"], steps: Int64[np.ndarray, " k"]) -> dict[str, np.ndarray]:
        """The state and one action of some frames: float32[k, s] and float32[k, d]."""
        values = self._chosen(frames, steps[:, None])
        return {"state": values["state"], "actions": values["actions"][:, 0]}

    def _chosen(self, frames: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
        last = self.to_index[np.searchsorted(self.to_index, frames, side="right")] - 1
        state = self.state[frames]
        actions = self.actions[np.minimum(frames[:, None] + steps, last[:, None])]
        width = len(self.mask)
        actions[..., :width] -= np.where(self.mask, state[:, None, :width], np.float32(0))
        return {"state": state, "actions": actions}

    def blocks(self) -> Iterator[RawValues]:
        """All of it."""
        yield self

    def pieces(self, name: str, dim: int) -> Pieces:
        """One dimension's values; a piece is valid until the next is asked for.

        An action that is not relative depends on one frame only: it comes once, with the number of its places.
        """
        if name == "actions" and dim < len(self.mask) and self.mask[dim]:
            rows = max(1, _PIECE // self.horizon)
            bounds = self.from_index, self.to_index
            for chunks in chunk_values(self.actions[:, dim], self.state[:, dim], *bounds, self.horizon, rows):
                yield chunks, None
            return
        column = np.ascontiguousarray(self.state[:, dim] if name == "state" else self.actions[:, dim])
        weights = None if name == "state" else occurrences(self.from_index, self.to_index, self.horizon)
        for start in range(0, len(column), _PIECE):
            part = slice(start, start + _PIECE)
            yield column[part], None if weights is None else weights[part]


class RawFiles:
    """The same values, read anew from the parquet files in each pass: a `ValueSource` that never holds them all.

    At any time two blocks of whole files are in memory: the one that is looked at, and the one that is read.

    Args:
        info: The dataset.
        episodes: Its episodes.
        config: Which of its columns.
        model: Gives the chunks their length.

    Raises:
        UsageError: if the config has an impossible delta mask.
        DataError: if the dataset lacks a column; while it is read, if a file is damaged.
    """

    def __init__(self, info: DatasetInfo, episodes: Episodes, config: DataConfig, model: ModelConfig) -> None:
        self._info, self._episodes, self._config, self._model = info, episodes, config, model
        self.frames, self.horizon = info.total_frames, model.action_horizon
        keys = {"state": config.state, "actions": config.actions}
        self.widths = {name: int(np.prod(require_feature(info, key).shape)) for name, key in keys.items()}
        _require_mask(config, self.widths)

    def blocks(self) -> Iterator[RawValues]:
        """Some files after the other."""
        for _, values in self._parts():
            yield values

    def drawn(self, frames: Int64[np.ndarray, " k"], steps: Int64[np.ndarray, " k"]) -> dict[str, np.ndarray]:
        """The state and one action of some frames: float32[k, s] and float32[k, d]."""
        found = {name: np.empty((len(frames), width), np.float32) for name, width in self.widths.items()}
        for start, values in self._parts():
            part = slice(*np.searchsorted(frames, [start, start + values.frames]))
            for name, array in values.drawn(frames[part] - start, steps[part]).items():
                found[name][part] = array
        return found

    def _parts(self) -> Iterator[tuple[int, RawValues]]:
        start = 0
        for info, episodes in split_by_files(self._info, self._episodes, _BLOCK):
            yield start, read_raw_values(info, episodes, self._config, self._model)
            start += info.total_frames


def split_by_files(info: DatasetInfo, episodes: Episodes, frames: int) -> Iterator[tuple[DatasetInfo, Episodes]]:
    """Divides a dataset into parts of whole parquet files, each to be read as if it were all.

    Args:
        info: The dataset.
        episodes: Its episodes.
        frames: A part has at least so many, but the last.

    Yields:
        Parts in the order of the episodes, with frames counted from 0 in each.
    """
    start = 0
    for end in _ends_of_files(episodes):
        offset = int(episodes.from_index[start])
        total = int(episodes.to_index[end - 1]) - offset
        if total < frames and end != len(episodes):
            continue
        part = slice(start, end)
        yield (
            dataclasses.replace(info, total_frames=total),
            dataclasses.replace(
                episodes,
                from_index=episodes.from_index[part] - offset,
                to_index=episodes.to_index[part] - offset,
                videos={},
                **{name: getattr(episodes, name)[part] for name in _BY_EPISODE},
            ),
        )
        start = end


def _ends_of_files(episodes: Episodes) -> list[int]:
    """One after each episode behind which no file goes on that was begun before."""
    pairs = np.stack([episodes.data_chunk, episodes.data_file], axis=1)
    _, first_of_reversed, file = np.unique(pairs[::-1], axis=0, return_index=True, return_inverse=True)
    last = len(pairs) - 1 - first_of_reversed  # of each file, its last episode
    furthest = np.maximum.accumulate(last[file.reshape(-1)[::-1]])
    ends: list[int] = (np.flatnonzero(furthest == np.arange(len(pairs))) + 1).tolist()
    return ends


def read_raw_values(info: DatasetInfo, episodes: Episodes, config: DataConfig, model: ModelConfig) -> RawValues:
    """Reads state and actions alone, whatever is wrong with cameras, prompts or a file of statistics.

    Args:
        info: The dataset, or a part of it.
        episodes: Its episodes.
        config: Which of its columns.
        model: Gives the chunks their length.

    Returns:
        The values of all frames.

    Raises:
        UsageError: if the config has an impossible delta mask.
        DataError: if the dataset is missing or damaged, or lacks a column.
    """
    keys = (config.state, config.actions)
    columns = read_columns(info, episodes, dict.fromkeys(keys, np.dtype(np.float32)))
    state, actions = (columns[key] for key in keys)
    _require_mask(config, {"state": state.shape[1], "actions": actions.shape[1]})
    return RawValues(
        state=state,
        actions=actions,
        from_index=episodes.from_index,
        to_index=episodes.to_index,
        mask=delta_mask(config.delta_actions),
        horizon=model.action_horizon,
    )


def _require_mask(config: DataConfig, widths: Mapping[str, int]) -> None:
    if (covered := len(delta_mask(config.delta_actions))) > min(widths.values()):
        raise UsageError(
            f"data.delta_actions covers {covered} dimensions, but {config.state!r} has {widths['state']} and "
            f"{config.actions!r} has {widths['actions']}"
        )


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
