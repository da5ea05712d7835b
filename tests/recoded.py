"""The g1 recording with small pictures, encoded anew in whatever way a test needs."""

import functools
import itertools
import json
import shutil
from fractions import Fraction
from pathlib import Path

import av

V21 = Path(__file__).parent / "data" / "g1_v21"
V30 = Path(__file__).parent.parent / "examples" / "data" / "g1"
CAMERA = "observation.images.cam_high"
SIZE = (48, 64)
LENGTHS = (221, 277)


def v21_video(root, episode):
    return root / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"


def v30_video(root):
    return root / f"videos/{CAMERA}/chunk-000/file-000.mp4"


@functools.cache
def pictures(episode):
    """Real pictures for every frame of an episode, small, and the same forty over and over: decoding takes time."""
    with av.open(str(v21_video(V21, episode))) as container:
        frames = itertools.islice(container.decode(video=0), 40)
        few = [frame.to_ndarray(format="rgb24", width=SIZE[1], height=SIZE[0]) for frame in frames]
    return [few[i % 40] for i in range(LENGTHS[episode])]


def encode(path, frames, *, times=None, fps=30, codec="mpeg4", container_options=None, **options):
    """Writes pictures as a video.

    Args:
        path: Where to.
        frames: The pictures.
        times: When each is shown, in units of 1 / (1000 fps); None for one after the other.
        fps: Frames a second.
        codec: Which.
        container_options: Of the muxer.
        options: Of the encoder; a key frame every 2 frames where `g` is not given.
    """
    path.unlink(missing_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "2", **options})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000 * fps) if times is not None else Fraction(1, fps)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i if times is None else times[i], stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def edit_info(root, change):
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def small_copy(source, target):
    """A copy of the dataset with small videos."""
    shutil.copytree(source, target)
    edit_info(target, lambda info: info["features"][CAMERA].update(shape=[*SIZE, 3]))
    if source == V21:
        for episode in (0, 1):
            encode(v21_video(target, episode), pictures(episode))
    else:
        encode(v30_video(target), [*pictures(0), *pictures(1)])
    return target


def in_milliframes(frames):
    """Times for `encode`: frame i at i / fps."""
    return [1000 * i for i in range(len(frames))]
