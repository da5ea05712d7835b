"""LeRobot's reader with videos that stay open: the very pixels that it decodes itself, at half the cost.

LeRobot 0.1.0, which openpi pins, opens the video anew for each frame. Where it decodes by PyAV, that step is done by
our own reader instead, which keeps videos and decoders open; what comes out is compared with what LeRobot gives.
"""

from __future__ import annotations

import logging
from typing import Any

from preflight.data.frames import WantedFrame, read_frames

logger = logging.getLogger(__name__)


class OpenVideos:
    """In the place of a `LeRobotDataset`'s `_query_videos`.

    Args:
        dataset: The dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __call__(self, query_timestamps: dict[str, list[float]], ep_idx: int) -> dict[str, Any]:
        """Decodes the frames of an episode at some times.

        Args:
            query_timestamps: In seconds, by camera.
            ep_idx: The episode.

        Returns:
            By camera, float32[3, h, w] in 0 to 1; with a leading axis where there are several times.

        Raises:
            DataError: a video is damaged or lacks a frame; names file and time.
        """
        import torch

        dataset, item = self._dataset, {}
        for key, times in query_timestamps.items():
            path = dataset.root / dataset.meta.get_video_file_path(ep_idx, key)
            pictures = read_frames(
                [WantedFrame(path=path, timestamp_s=time) for time in times], tolerance_s=dataset.tolerance_s
            )
            frames = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures])
            item[key] = (frames.type(torch.float32) / 255).squeeze(0)
        return item


def keep_videos_open(dataset: Any) -> bool:
    """Has a dataset of LeRobot's read its videos through `OpenVideos`, where that changes no pixel.

    Args:
        dataset: What openpi's `create_torch_dataset` gives; a `LeRobotDataset`, or one that transforms it.

    Returns:
        Whether it does so now. It does not where the dataset is of another kind, decodes by something else than PyAV or
        has no videos; nor where the first and the last frame of a camera differ from LeRobot's.
    """
    while not hasattr(dataset, "_query_videos"):
        dataset = getattr(dataset, "_dataset", None)
        if dataset is None:
            return False
    if not _is_lerobots(dataset) or dataset.video_backend != "pyav" or not dataset.meta.video_keys:
        return False
    ours = OpenVideos(dataset)
    try:
        same = all(_is_same(dataset, ours, index) for index in (0, len(dataset) - 1))
    except Exception as error:  # noqa: BLE001 - whatever it is, reading a sample meets it again and names it
        logger.debug("videos are read by LeRobot itself: %s", error)
        return False
    if same:
        dataset._query_videos = ours
    return same


def _is_lerobots(dataset: Any) -> bool:
    """Whether the step is LeRobot's own, not a user's."""
    return getattr(type(dataset)._query_videos, "__module__", "").startswith("lerobot.")


def _is_same(dataset: Any, ours: OpenVideos, index: int) -> bool:
    import torch

    row = dataset.hf_dataset[index]
    times = {key: [row["timestamp"].item()] for key in dataset.meta.video_keys}
    episode = row["episode_index"].item()
    theirs, found = dataset._query_videos(times, episode), ours(times, episode)
    return all(torch.equal(theirs[key], found[key]) for key in times)
