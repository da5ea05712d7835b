"""Which episodes lie in which video, and when; and whether a video's frames are where that says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from preflight.data.episodes import Episodes
from preflight.data.metadata import DatasetInfo, Feature
from preflight.data.video import TOLERANCE_S


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFile:
    """One video and the episodes that lie in it, in the order of their time in it."""

    camera: str
    path: Path
    fps: float  # of the dataset
    size: tuple[int, int] | None  # height and width by info.json; None where its shape does not say
    episode: Int64[np.ndarray, " e"]  # the dataset's own numbers
    length: Int64[np.ndarray, " e"]  # frames
    start_s: Float64[np.ndarray, " e"]  # second in the video at which each begins

    def time_s(self, at: int, frame: Any) -> Any:
        """When frames of the episode at a place of these arrays are shown, in seconds."""
        return float(self.start_s[at]) + frame / self.fps

    def named(self, at: int, frame: int) -> str:
        """File, episode and frame, to begin a sentence with."""
        return f"{self.path}, episode {int(self.episode[at])}, frame {frame}"


def video_files(info: DatasetInfo, episodes: Episodes, camera: str) -> list[VideoFile]:
    """Lists a camera's videos.

    Args:
        info: The dataset.
        episodes: Its episodes.
        camera: One of its video keys.

    Returns:
        In the order of the episodes.
    """
    segments = episodes.videos[camera]
    held: dict[tuple[int, int], list[int]] = {}
    for position, pair in enumerate(zip(segments.chunk.tolist(), segments.file.tolist(), strict=True)):
        held.setdefault(pair, []).append(position)
    files = []
    for pair, positions in held.items():
        order = np.array(positions)[np.argsort(segments.from_timestamp[positions], kind="stable")]
        files.append(
            VideoFile(
                camera=camera,
                path=info.video_file(camera, *pair),
                fps=info.fps,
                size=height_and_width(info.features[camera]),
                episode=episodes.index[order],
                length=episodes.length[order],
                start_s=segments.from_timestamp[order],
            )
        )
    return files


def impossible_layout(video: VideoFile) -> str | None:
    """Says why the metadata's places of the episodes in a video cannot be true: no time at all, or two overlap."""
    if (odd := ~(np.isfinite(video.start_s) & (video.start_s >= 0))).any():
        at = int(odd.argmax())
        return f"{video.path}, episode {video.episode[at]}: from_timestamp in meta/episodes is {video.start_s[at]}"
    end_s = video.start_s + video.length / video.fps
    # Half a frame: the times in the metadata are sums of floats.
    if (overlap := video.start_s[1:] < end_s[:-1] - 0.5 / video.fps).any():
        at = int(overlap.argmax())
        return (
            f"{video.path}: by meta/episodes, episode {video.episode[at + 1]} begins at {video.start_s[at + 1]:.4f} s, "
            f"before episode {video.episode[at]} ends at {end_s[at]:.4f} s"
        )
    return None


def frames_needed(video: VideoFile) -> int:
    """Frames up to the end of the last episode, whose layout is possible."""
    return round(float(video.start_s[-1]) * video.fps) + int(video.length[-1])


def missing_frames(video: VideoFile, times_s: Float64[np.ndarray, " n"]) -> str | None:
    """Looks for each frame of the episodes among the times of a video's frames.

    Args:
        video: Its episodes are looked for.
        times_s: Of all frames of the video, sorted, in seconds.

    Returns:
        The first frame that has none within LeRobot's tolerance of 1e-4 s, and how many there are; None if none.
    """
    if not len(times_s):
        return f"{video.path} holds no frame"
    first, frames, held = None, 0, 0
    for at, length in enumerate(video.length.tolist()):
        wanted = video.time_s(at, np.arange(length))
        nearest = nearest_times(wanted, times_s)
        gone = np.abs(nearest - wanted) > TOLERANCE_S
        if not gone.any():
            continue
        frames, held = frames + int(gone.sum()), held + 1
        if first is None:
            frame = int(gone.argmax())
            first = (
                f"{video.named(at, frame)}: no frame within {TOLERANCE_S:g} s of {wanted[frame]:.4f} s, the nearest "
                f"is at {nearest[frame]:.4f} s"
            )
    return first and f"{first} (in all {frames} frame(s) of {held} episode(s))"


def nearest_times(wanted: Float64[np.ndarray, " n"], times_s: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " n"]:
    """Finds for each time the nearest of others.

    Args:
        wanted: In seconds.
        times_s: In seconds, sorted; at least one.
    """
    after = np.searchsorted(times_s, wanted)
    before, after = np.maximum(after - 1, 0), np.minimum(after, len(times_s) - 1)
    closer = np.abs(times_s[before] - wanted) <= np.abs(times_s[after] - wanted)
    return times_s[np.where(closer, before, after)]


def height_and_width(feature: Feature) -> tuple[int, int] | None:
    """Height and width of a camera's shape, whose order its names give, else the place of its channels.

    Names that give a height or width of 4 or less contradict the shape: [3, 480, 640] as height, width, channel.
    """
    names = [name.lower()[:1] for name in feature.names or ()]
    if len(names) == len(feature.shape) and {"h", "w"} <= set(names):
        named = feature.shape[names.index("h")], feature.shape[names.index("w")]
        if min(named) > 4 or len(feature.shape) != 3:
            return named
    if len(feature.shape) != 3:
        return None
    height, width = feature.shape[1:] if feature.shape[0] <= 4 < feature.shape[2] else feature.shape[:2]
    return height, width
