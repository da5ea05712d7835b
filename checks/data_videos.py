"""`data.videos`: each video opens and holds the frames of its episodes where they are looked for."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from checks import data_pictures
from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.data.metadata import DatasetInfo, read_info
from preflight.errors import DataError

if TYPE_CHECKING:
    from preflight.data.image_pass import SeenPictures
    from preflight.data.video_files import VideoFile
    from preflight.data.video_pass import SeenVideo
    from preflight.data.video_probe import DecodeCost

# Seconds after which no further video is begun below level "full"; the first and last of each camera are looked at.
BUDGET_S = 60.0
_TIMEOUT_S = 3600

# LeRobot encodes with a key frame every 2 frames; far beyond that, a random frame costs many times one in sequence.
LONG_KEY_FRAME_DISTANCE = 20


def _videos(context: CheckContext) -> Outcome:
    root = context.run.source()
    if root is None:
        return passed("samples are made up without a dataset: it has no videos")
    info = read_info(root)
    cameras = _cameras(context, info)
    images = [key for key in cameras if key in info.image_keys]
    cameras = [key for key in cameras if key in info.video_keys]
    if not (cameras or images):
        return passed("no video is read: the run uses no camera")
    began = time.monotonic()
    try:
        import av  # noqa: F401
    except ImportError as error:
        return failed(
            f"PyAV, which decodes the videos, cannot be imported: {error}",
            hint=Hint(text="install it again; its wheels bring FFmpeg", commands=("pip install --force-reinstall av",)),
        )
    from preflight.data.episodes import read_episodes
    from preflight.data.video_files import video_files
    from preflight.data.video_pass import look_at

    episodes = read_episodes(info)
    pictures = None
    if images:
        limit_s = _TIMEOUT_S / 2 if context.level == "full" else BUDGET_S
        pictures = data_pictures.look_at(context, info, episodes, images, limit_s=limit_s)
    if not cameras and pictures:
        return data_pictures.outcome_of(pictures)
    by_camera = {camera: video_files(info, episodes, camera) for camera in cameras}
    full = context.level == "full"
    seen = look_at(
        list(by_camera.values()),
        threads=max(1, math.ceil(context.probes.cpus().count)),
        limit_s=0.95 * _TIMEOUT_S - (time.monotonic() - began) if full else BUDGET_S,
        every_frame=full,
        progress=lambda done, total: None if full else context.progress("videos looked at", done, total),
        frames_progress=lambda done, total: context.progress("frames decoded", done, total),
    )
    faults = [fault for one in seen for fault in one.faults]
    costs: dict[str, DecodeCost] = {}
    if not faults:
        costs, faults = _costs(seen)
    if not faults and pictures and pictures.faults:
        return data_pictures.outcome_of(pictures)
    return _outcome(by_camera, seen, faults, costs, pictures, every_frame=full)


def _cameras(context: CheckContext, info: DatasetInfo) -> list[str]:
    """The cameras that the run's reader decodes, as far as the dataset has them; data.features names the others."""
    if context.run.facts.decodes_all_cameras:
        return list(info.camera_keys)
    try:
        used = context.run.cameras()
    except DataError:
        return list(info.camera_keys)
    return [key for key in info.camera_keys if key in used]


def _costs(seen: Sequence[SeenVideo]) -> tuple[dict[str, DecodeCost], list[str]]:
    """Measures decoding in one video of each camera, the one with the furthest key frames; and what is wrong there."""
    from preflight.data.video_probe import decode_cost

    costs: dict[str, DecodeCost] = {}
    faults = []
    for camera in dict.fromkeys(one.video.camera for one in seen):
        of_camera = (one for one in seen if one.video.camera == camera)
        slowest = max(of_camera, key=lambda one: one.header.key_frame_distance)
        try:
            costs[camera] = decode_cost(slowest.video)
        except DataError as error:
            faults.append(error.message)
    return costs, faults


def _outcome(
    by_camera: Mapping[str, Sequence[VideoFile]],
    seen: Sequence[SeenVideo],
    faults: Sequence[str],
    costs: Mapping[str, DecodeCost],
    pictures: SeenPictures | None,
    *,
    every_frame: bool,
) -> Outcome:
    videos = sum(len(files) for files in by_camera.values())
    episodes = sum(len(video.length) for files in by_camera.values() for video in files)
    opened, decoded = sum(one.header.opened for one in seen), sum(one.decoded for one in seen)
    kinds = sorted({f"{head.codec} {head.size[0]}x{head.size[1]}" for one in seen if (head := one.header).codec})
    broken = [one.video for one in seen if one.faults]
    measured = {
        "videos": videos,
        "videos_opened": opened,
        "videos_looked_at": len(seen),
        "episodes": episodes,  # of each camera
        "episodes_decoded": decoded,
        "every_frames_time_compared": every_frame,
        "frames_decoded": sum(one.header.frames_decoded for one in seen),  # in sequence, at level full
        "pictures": pictures.pictures if pictures else 0,  # in parquet files
        "codecs": kinds,
        "key_frame_distance": {
            camera: max((one.header.key_frame_distance for one in seen if one.video.camera == camera), default=0)
            for camera in by_camera
        },
        "decode_ms": {
            camera: {"random": round(cost.random_ms, 2), "sequential": round(cost.sequential_ms, 2)}
            for camera, cost in costs.items()
        },
        "broken": [str(video.path) for video in broken[:100]],
    }
    remarks = [remark for one in seen for remark in one.header.remarks]
    if pictures:
        remarks += [*pictures.faults, *pictures.remarks]
    if faults:
        many = f"; {len(broken):,} of the {len(seen):,} videos looked at are wrong" if len(broken) > 1 else ""
        return failed(
            faults[0] + many,
            measured=measured,
            evidence=data_pictures.evidence_of([*faults, *remarks]),
            hint=_mend(next((one for one in seen if one.faults), seen[0])),
        )
    far = [one for one in seen if one.header.key_frame_distance > LONG_KEY_FRAME_DISTANCE]
    lines = [*(_far_apart(one, costs[one.video.camera]) for one in far), *remarks]
    covered = f"{opened:,} of {videos:,} videos opened ({', '.join(kinds)})"
    if every_frame:
        frames = sum(int(video.length.sum()) for files in by_camera.values() for video in files)
        covered += f", {measured['frames_decoded']:,} of {frames:,} frames decoded in sequence"
    if lines:
        more = f"; {len(lines) - 1} more remark(s)" if len(lines) > 1 else ""
        return warned(
            f"{lines[0]}{more}; {covered}",
            measured=measured,
            evidence=data_pictures.evidence_of(lines),
            hint=_encode_again([one.video for one in far])
            if far
            else Hint(text="every frame that training reads is there"),
        )
    covered += ", the time of every frame compared" if every_frame else ""
    random_ms, sequential_ms = (
        max(getattr(cost, name) for cost in costs.values()) for name in ("random_ms", "sequential_ms")
    )
    beside = f"; {pictures.covered()}" if pictures else ""
    return passed(
        f"{covered}, first, middle and last frame of {decoded:,} of {episodes:,} episodes decoded; a frame costs "
        f"{random_ms:.1f} ms at random, {sequential_ms:.1f} ms in sequence{beside}",
        measured=measured,
    )


def _far_apart(one: SeenVideo, cost: DecodeCost) -> str:
    return (
        f"{one.video.path} has {one.header.key_frame_distance} frames from one key frame to the next: a frame costs "
        f"{cost.random_ms:.1f} ms at random, {cost.sequential_ms:.1f} ms in sequence"
    )


def _mend(one: SeenVideo) -> Hint:
    if one.header.wrong_size:
        return Hint(text="correct the shape in meta/info.json, or encode the video at that size")
    video = one.video
    entries = "stream=codec_name,width,height,avg_frame_rate,nb_read_packets"
    return Hint(
        text="fetch the file again (git lfs pull in a Git checkout), encode it again with one frame for each of the "
        "episode's, or drop the episode (lerobot-edit-dataset); ffprobe shows what it holds",
        commands=(
            f"ffprobe -v error -select_streams v -count_packets -show_entries {entries} {shlex.quote(str(video.path))}",
        ),
    )


def _encode_again(videos: Sequence[VideoFile]) -> Hint:
    paths = " ".join(shlex.quote(str(video.path)) for video in videos[: data_pictures.LISTED])
    more = (
        f"; the command takes the first {data_pictures.LISTED} of {len(videos):,}"
        if len(videos) > data_pictures.LISTED
        else ""
    )
    encode = "-c:v libsvtav1 -g 2 -crf 30 -pix_fmt yuv420p -fps_mode passthrough -c:a copy"
    again = '"${f%.*}.again.${f##*.}"'
    command = f'for f in {paths}; do ffmpeg -nostdin -y -i "$f" {encode} {again} && mv {again} "$f"; done'
    return Hint(
        text="encode the videos again with a key frame every 2 frames, as LeRobot does, and look at loader.throughput: "
        "training reads frames in random order. This takes the place of the files and loses some quality: keep a copy"
        f"{more}",
        commands=(command,),
        url="https://github.com/huggingface/lerobot/issues/1623",
    )


CHECK = Check(
    id="data.videos",
    title="Every video holds the frames of its episodes",
    level="standard",
    severity="fail",
    requires=("data.metadata",),
    failures=("F18", "F19", "F21", "F22", "F23"),
    timeout_s=_TIMEOUT_S,
    run=_videos,
    doc="Opens the videos that the run's reader decodes: codec, size, rate, number of frames against the episodes, and "
    "the distance of key frames, with what a frame costs at random and in sequence. First, middle and last frame of "
    "the episodes are decoded and must lie within LeRobot's 1e-4 s of their time. It begins with videos spread over "
    "the whole dataset and stops after a minute, saying how many it saw; at level full it takes all, compares the "
    "time of every frame and decodes each. Pictures in parquet files are decoded likewise, and must have the size and "
    "channels of their feature. A video that is cut off or short otherwise stops a loader worker in the middle of an "
    "epoch.",
)
