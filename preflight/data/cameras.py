"""The cameras' pictures of a dataset by frame index: as recorded, and as the model sees them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from preflight.config.schema import IMAGE_SLOTS, DataConfig
from preflight.data.episodes import Episodes
from preflight.data.frame_identity import FrameIdentity, identify
from preflight.data.frames import WantedFrame, read_frames
from preflight.data.images import read_images
from preflight.data.kept_frames import KeptFrames
from preflight.data.metadata import DatasetInfo, nearest
from preflight.data.resize import resize_after_decoding, resize_in_scaler, resize_with_pad
from preflight.data.shared_array import SharedArray
from preflight.data.video_signature import VideoSignatures
from preflight.errors import DataError, UsageError


def cameras_by_slot(config: DataConfig, info: DatasetInfo) -> dict[str, str]:
    """Which camera feeds which image slot.

    Args:
        config: What the run says.
        info: The dataset.

    Returns:
        The dataset's key by image slot; slots without a camera are left out.

    Raises:
        UsageError: if the config names an unknown image slot.
        DataError: if the dataset has no such camera.
    """
    for slot, key in config.cameras.items():
        if slot not in IMAGE_SLOTS:
            raise UsageError(f"data.cameras has no slot {slot!r}", f"The model's slots are: {', '.join(IMAGE_SLOTS)}")
        if key not in info.camera_keys:
            raise DataError(
                f"camera {key!r} is not in the dataset {info.root}",
                nearest(key, info.camera_keys).replace("The dataset has", "Its cameras"),
            )
    return dict(config.cameras)


class Cameras:
    """Pictures of the cameras that feed the model; no other one is ever opened. Small when pickled.

    Args:
        keys: The cameras.
        info: The dataset.
        episodes: Where each episode lies.
        timestamps: Each frame's time in its episode, float64[frames, 1] in seconds; None where no camera is a video.
        resize: How a picture becomes the model's square, as `DataConfig.resize` has it.
    """

    def __init__(
        self,
        keys: Iterable[str],
        info: DatasetInfo,
        episodes: Episodes,
        timestamps: SharedArray | None,
        resize: Literal["swscale", "pil"],
    ) -> None:
        self._resize = resize
        self._kept: dict[str, KeptFrames] = {}
        self._info = info
        self._episodes = episodes
        self._timestamps = timestamps
        self._convert = resize_in_scaler if resize == "swscale" else resize_after_decoding
        # Pictures in parquet files have no signature.
        self._signatures = {
            key: VideoSignatures(info, key, episodes.videos[key]) for key in set(keys) & episodes.videos.keys()
        }

    def as_recorded(self, index: int, key: str) -> UInt8[np.ndarray, "h w 3"]:
        """Reads one picture at its own size.

        Args:
            index: The frame, from 0.
            key: The camera.

        Returns:
            The picture as RGB.

        Raises:
            DataError: if it cannot be read.
        """
        if key in self._signatures:
            return read_frames(self._wanted([index], key))[0]
        return self._pictures([index], key)[0]

    def keep(self, key: str, kept: KeptFrames) -> None:
        """Has a camera's squares taken from, or added to, frames that are kept."""
        self._kept[key] = kept

    def is_kept(self, key: str) -> bool:
        """Whether a camera's squares are taken from frames that are kept."""
        return key in self._kept

    def without_kept(self) -> Cameras:
        """The same, decoding everything."""
        decoding = copy.copy(self)
        decoding._kept = {}
        return decoding

    def identity(self, key: str) -> FrameIdentity:
        """What a camera's squares are made of, as its files are now.

        Raises:
            DataError: if a file is missing.
        """
        return identify(key, self._resize, self._info, self._episodes, self._timestamps)

    def squares(self, indices: Sequence[int], key: str) -> list[UInt8[np.ndarray, "size size 3"]]:
        """Reads pictures as the model sees them, those of one video in one pass.

        Args:
            indices: The frames, in any order.
            key: The camera.

        Returns:
            The pictures as RGB, scaled and padded to the model's square, in the order asked.

        Raises:
            DataError: if one cannot be read.
        """
        if (kept := self._kept.get(key)) is None:
            return self.decoded(indices, key)
        return kept.squares(indices, lambda gone: self.decoded(gone, key))

    def decoded(self, indices: Sequence[int], key: str) -> list[UInt8[np.ndarray, "size size 3"]]:
        """The same as `squares`, whatever is kept."""
        if key in self._signatures:
            return read_frames(self._wanted(indices, key), self._convert)
        return [resize_with_pad(picture) for picture in self._pictures(indices, key)]

    def _pictures(self, indices: Sequence[int], key: str) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Pictures out of parquet files, those of one file in one pass."""
        of_file: dict[tuple[int, int], dict[int, int]] = {}  # by chunk and file, the row of each index
        for index in dict.fromkeys(indices):
            at = self._episodes.of_frame(index)
            file = int(self._episodes.data_chunk[at]), int(self._episodes.data_file[at])
            row = int(self._episodes.data_row[at]) + index - int(self._episodes.from_index[at])
            of_file.setdefault(file, {})[index] = row
        pictures: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
        for file, rows in of_file.items():
            found = read_images(self._info.data_file(*file), key, sorted(rows.values()))
            pictures |= {index: found[row] for index, row in rows.items()}
        return [pictures[index] for index in indices]

    def _wanted(self, indices: Sequence[int], key: str) -> list[WantedFrame]:
        assert self._timestamps is not None
        segments = self._episodes.videos[key]
        paths: dict[tuple[int, int], Path] = {}
        wanted = []
        for index in indices:
            at = self._episodes.of_frame(index)
            file = int(segments.chunk[at]), int(segments.file[at])
            if file not in paths:
                paths[file] = self._info.video_file(key, *file)
            wanted.append(
                WantedFrame(
                    path=paths[file],
                    timestamp_s=float(segments.from_timestamp[at]) + float(self._timestamps.array[index, 0]),
                    signature=self._signatures[key].of_episode(at),
                )
            )
        return wanted
