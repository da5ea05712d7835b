"""The samples that the model trains on, from a LeRobot dataset on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from preflight.config.schema import IMAGE_SIZE, IMAGE_SLOTS, DataConfig, ModelConfig
from preflight.data import normalize
from preflight.data.actions import action_chunk_indices, delta_mask, to_delta
from preflight.data.cameras import Cameras, cameras_by_slot
from preflight.data.columns import read_columns, require_feature
from preflight.data.episodes import Episodes, read_episodes
from preflight.data.frame_cache import FrameCache
from preflight.data.locate import resolve_root
from preflight.data.metadata import DatasetInfo, read_info
from preflight.data.normalize import NormStats
from preflight.data.prompts import require_room, tokenize_all
from preflight.data.raw_values import RawValues
from preflight.data.sampler import WindowedOrder
from preflight.data.shared_array import SharedArray
from preflight.data.streamed_stats import exact_stats
from preflight.data.tokenizer import tokenize
from preflight.errors import DataError, UsageError

_UNUSED_SLOT = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
_UNUSED_SLOT.flags.writeable = False


class SampleDataset:
    """Map-style dataset of training samples, one a frame.

    A sample is, without batch axis: `image` {slot: uint8[224, 224, 3]} and `image_mask` {slot: bool[]} for every slot
    of IMAGE_SLOTS, `state` float32[action_dim], `actions` float32[horizon, action_dim], `tokenized_prompt`
    int32[max_len] and `tokenized_prompt_mask` bool[max_len]. It is made in this order: cameras resized, actions
    relative to the state, both normalised, prompt tokenised, state and actions padded with zeros. pi0.5's prompt holds
    the normalised state; where both do not fit into the model's tokens, it is the task's text that is cut.

    The columns lie in shared memory: pickled for a loader worker the dataset is some kilobytes. Only the configured
    cameras are ever opened. Their frames come from the config's cache where there is one, the same bytes; one on disk
    that is not there yet is made by `frame_cache.prepare`, never here.

    Args:
        config: Which dataset, and how its columns feed the model.
        model: What the model takes.

    Attributes:
        info: What the dataset says about itself.
        episodes: Where each episode lies.
        stats: The normalisation statistics of "state" and "actions", given or computed.
        norm: The formula that they are used in.
        prompts: The prompts, by task_index; one if the config sets it.
        source: The dataset's folder.
        frame_cache: What keeps the cameras' frames.

    Raises:
        UsageError: if the config names an unknown image slot, an impossible delta mask or an empty shuffle window.
        DataError: if the dataset is missing or damaged, lacks a column or camera, or is wider than the model; or if
            pi0.5's prompt has no room for the state.
    """

    def __init__(self, config: DataConfig, model: ModelConfig) -> None:
        self.config = config
        self.model = model
        self.norm: Literal["zscore", "quantile"] = config.norm or model.default_norm
        self.info: DatasetInfo = read_info(resolve_root(config))
        self.source: Path = self.info.root
        if config.shuffle_window is not None and config.shuffle_window < 1:
            raise UsageError(f"data.shuffle_window must be at least 1 episode, got {config.shuffle_window}")
        self._slots = cameras_by_slot(config, self.info)
        self._mask = delta_mask(config.delta_actions)
        self._require_fit()
        self.episodes: Episodes = read_episodes(self.info)
        dtypes: dict[str, np.dtype] = {key: np.dtype(np.float32) for key in (config.state, config.actions)}
        if any(self.info.features[key].dtype == "video" for key in self._slots.values()):
            dtypes["timestamp"] = np.dtype(np.float64)
        if config.prompt is None:
            dtypes["task_index"] = np.dtype(np.int64)
        self._columns: dict[str, SharedArray] = {}
        arrays: list[SharedArray] = []

        def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
            arrays.append(SharedArray(shape, dtype))
            return arrays[-1].array

        keys = list(read_columns(self.info, self.episodes, dtypes, allocate=allocate))
        self._columns = dict(zip(keys, arrays, strict=True))
        timestamps = self._columns.get("timestamp")
        self._cameras = Cameras(self._slots.values(), self.info, self.episodes, timestamps, config.resize)
        self.frame_cache = FrameCache(config, self._cameras, tuple(self._slots.values()), self.info)
        self.frame_cache.open()
        self.stats: dict[str, NormStats] = self._stats()
        self.prompts: tuple[str, ...] = (config.prompt,) if config.prompt is not None else self._tasks()
        require_room(self.prompts, model.prompt_len, self.column("state").shape[1] if model.pi05 else None)
        # Without the state a prompt is the same in every frame.
        self._tokens = None if model.pi05 else tokenize_all(self.prompts, model.prompt_len)

    def __len__(self) -> int:
        return self.info.total_frames

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Makes one sample.

        Args:
            index: The frame, from 0.

        Returns:
            The sample, as the class describes it.

        Raises:
            IndexError: if there is no such frame.
            DataError: if a camera's frame cannot be read.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Makes samples together: frames that lie in one video are decoded in one pass.

        Args:
            indices: The frames, from 0, in any order.

        Returns:
            The samples, each the same as alone, in the order asked.

        Raises:
            IndexError: if there is no such frame.
            DataError: if a camera's frame cannot be read.
        """
        return self._transformed(self._decoded(indices))

    def batch_stages(self) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
        """How samples are made (`preflight.runs.protocol.BatchStagedDataset`): their pictures, and all the rest."""
        return ("read" if self.frame_cache.is_open else "decode", self._decoded), ("transform", self._transformed)

    def batch_order(self, batch_size: int, seed: int) -> WindowedOrder | None:
        """The order that `data.shuffle_window` asks for, for `BatchLoader`; None: its own, shuffled over everything.

        Args:
            batch_size: Samples in a batch.
            seed: Of the shuffle.

        Raises:
            UsageError: if the dataset has no full batch.
        """
        if self.config.shuffle_window is None:
            return None
        return WindowedOrder(self.episodes.length, self.config.shuffle_window, batch_size, seed)

    def _decoded(self, indices: Sequence[int]) -> list[tuple[int, dict[str, np.ndarray]]]:
        """Each index and, by image slot, the cameras' pictures as the model sees them."""
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"sample {index} of a dataset with {len(self)} samples")
        squares = {key: self._cameras.squares(indices, key) for key in dict.fromkeys(self._slots.values())}
        return [
            (index, {slot: squares[key][i] for slot, key in self._slots.items()}) for i, index in enumerate(indices)
        ]

    def _transformed(self, decoded: Sequence[tuple[int, dict[str, np.ndarray]]]) -> list[dict[str, Any]]:
        return [self._sample(index, pictures) for index, pictures in decoded]

    def _sample(self, index: int, pictures: dict[str, np.ndarray]) -> dict[str, Any]:
        episode = self.episodes.of_frame(index)
        images = {slot: pictures.get(slot, _UNUSED_SLOT) for slot in IMAGE_SLOTS}
        masks = {slot: np.bool_(slot in pictures) for slot in IMAGE_SLOTS}
        state = self.column("state")[index]
        chunk = action_chunk_indices(index, int(self.episodes.to_index[episode]), self.model.action_horizon)
        actions = to_delta(self.column("actions")[chunk], state, self._mask)
        task = 0 if self.config.prompt is not None else int(self._columns["task_index"].array[index, 0])
        state = normalize.normalize(state, self.stats["state"], self.norm)
        if self._tokens is None:
            tokens, token_mask = tokenize(self.prompts[task], self.model.prompt_len, state)
        else:
            tokens, token_mask = (array[task] for array in self._tokens)
        return {
            "image": images,
            "image_mask": masks,
            "state": self._padded(state),
            "tokenized_prompt": tokens,
            "tokenized_prompt_mask": token_mask,
            "actions": self._padded(normalize.normalize(actions, self.stats["actions"], self.norm)),
        }

    def column(self, name: str) -> np.ndarray:
        """Gives the raw values of all frames.

        Args:
            name: "state" or "actions".

        Returns:
            float32[frames, d], in shared memory: not to be written to.
        """
        return self._columns[{"state": self.config.state, "actions": self.config.actions}[name]].array

    def raw_values(self) -> RawValues:
        """What is normalised, of all frames; nothing is copied."""
        return RawValues(
            state=self.column("state"),
            actions=self.column("actions"),
            from_index=self.episodes.from_index,
            to_index=self.episodes.to_index,
            mask=self._mask,
            horizon=self.model.action_horizon,
        )

    def camera_frame(self, index: int, key: str) -> UInt8[np.ndarray, "h w 3"]:
        """Reads a camera's frame as recorded.

        Args:
            index: The frame, from 0.
            key: The camera, one of those that the config uses.

        Returns:
            The frame as RGB.

        Raises:
            DataError: if it cannot be read.
        """
        return self._cameras.as_recorded(index, key)

    def _require_fit(self) -> None:
        widths = {}
        for name, key in (("state", self.config.state), ("actions", self.config.actions)):
            feature = require_feature(self.info, key)
            widths[name] = int(np.prod(feature.shape))
            if widths[name] > self.model.action_dim:
                raise DataError(
                    f"{key!r} has {widths[name]} dimensions, more than the model's action_dim {self.model.action_dim}",
                    f"Set model.action_dim to at least {widths[name]}, or choose other columns.",
                )
        if len(self._mask) > min(widths.values()):
            raise UsageError(
                f"data.delta_actions covers {len(self._mask)} dimensions, but {self.config.state!r} has "
                f"{widths['state']} and {self.config.actions!r} has {widths['actions']}"
            )

    def _stats(self) -> dict[str, NormStats]:
        state, actions = self.column("state"), self.column("actions")
        if (path := self.config.norm_stats) is None:
            return exact_stats(self.raw_values())[0]
        loaded = normalize.load(path.expanduser())
        if self.norm == "quantile" and any(np.isnan(loaded[name].q01).any() for name in ("state", "actions")):
            raise DataError(f"{path} has no quantiles", "Compute the statistics again, or use data.norm = 'zscore'.")
        return {
            "state": normalize.fit_to(loaded["state"], state.shape[1], "state", path),
            "actions": normalize.fit_to(loaded["actions"], actions.shape[1], "actions", path),
        }

    def _tasks(self) -> tuple[str, ...]:
        tasks = self.episodes.tasks
        for index in np.unique(self._columns["task_index"].array).tolist():
            if not 0 <= index < len(tasks) or not tasks[index]:
                raise DataError(
                    f"{self.source}: frames have task_index {index}, which none of its {len(tasks)} task(s) has",
                    "Repair the dataset's meta/tasks file, or set data.prompt.",
                )
        return tasks

    def _padded(self, x: np.ndarray) -> np.ndarray:
        padded = np.zeros((*x.shape[:-1], self.model.action_dim), dtype=np.float32)
        padded[..., : x.shape[-1]] = x
        return padded
