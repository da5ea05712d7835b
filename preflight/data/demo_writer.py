"""LeRobot as the writer of the demo dataset: its versions differ in names and manners, and all of them talk."""

import contextlib
import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from preflight.data.demo_motion import FPS, JOINT_NAMES, TASK
from preflight.data.demo_scene import CAMERAS
from preflight.errors import PreflightError

REPO_ID = "preflight/lighter-cup-demo"

_STREAM_BYTES = 512 << 20  # the longest episode that LeRobot may queue in memory while it encodes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps LeRobot and the encoders off the terminal, and leaves this process's logging as it was."""
    import av

    # LeRobot calls logging.info() on the root logger, which installs a handler on stderr where there is none.
    silent, root = logging.NullHandler(), logging.getLogger()
    root.addHandler(silent)
    svt, level = os.environ.get("SVT_LOG"), av.logging.get_level()
    os.environ["SVT_LOG"] = "1"  # libsvtav1 prints on file descriptor 2: errors only
    # LeRobot's encoder threads hand FFmpeg's messages back to FFmpeg, which prints them.
    av.logging.set_libav_level(av.logging.ERROR)
    try:
        yield
    finally:
        av.logging.set_libav_level(av.logging.INFO)  # FFmpeg's default; PyAV cannot be asked what it was
        av.logging.set_level(level)
        root.removeHandler(silent)
        if svt is None:
            os.environ.pop("SVT_LOG", None)
        else:
            os.environ["SVT_LOG"] = svt


class _PixelStatistics:
    """LeRobot's ``RunningQuantileStats``, except for pixels, of which it counts the 256 values.

    LeRobot's own (0.4.4) squares uint8 pixels in uint8, so that its standard deviations are wrong, and it takes longer
    than the encoder.
    """

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs
        self._counts: np.ndarray | None = None

    def update(self, batch: np.ndarray) -> None:
        if batch.dtype != np.uint8:
            self._theirs.update(batch)
            return
        pixels = batch.reshape(-1, batch.shape[-1])
        counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
        self._counts = counts if self._counts is None else self._counts + counts

    def get_statistics(self) -> dict[str, np.ndarray]:
        if self._counts is None:
            return self._theirs.get_statistics()
        value, total = np.arange(256.0), self._counts.sum(axis=1)
        mean = self._counts @ value / total
        below = self._counts.cumsum(axis=1)
        statistics = {
            "min": (self._counts > 0).argmax(axis=1).astype(float),
            "max": 255.0 - (self._counts[:, ::-1] > 0).argmax(axis=1),
            "mean": mean,
            "std": np.sqrt((self._counts * (value - mean[:, None]) ** 2).sum(axis=1) / total),
            "count": total[:1],
        }
        for percent in (1, 10, 50, 90, 99):
            statistics[f"q{percent:02d}"] = (below >= percent / 100 * total[:, None]).argmax(axis=1).astype(float)
        return statistics


@contextlib.contextmanager
def exact_pixel_statistics() -> Iterator[None]:
    """Gives LeRobot our statistics of pixels, where this version looks for its own in the known place."""
    try:
        from lerobot.datasets import compute_stats

        theirs = compute_stats.RunningQuantileStats
    except (ImportError, AttributeError):
        yield
        return

    def choose(*args: Any, **kwargs: Any) -> Any:
        ordinary = theirs(*args, **kwargs)
        return ordinary if args or kwargs else _PixelStatistics(ordinary)

    compute_stats.RunningQuantileStats = choose
    try:
        yield
    finally:
        compute_stats.RunningQuantileStats = theirs


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    from datasets.utils import logging as datasets_logging

    shown = datasets_logging.is_progress_bar_enabled()
    datasets_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            datasets_logging.enable_progress_bar()


def _lerobot_dataset() -> Any:
    """LeRobot's dataset class, wherever the installed version keeps it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from lerobot.datasets.lerobot_dataset import LeRobotDataset
            except ModuleNotFoundError as error:
                if error.name not in ("lerobot.datasets", "lerobot.datasets.lerobot_dataset"):
                    raise
                from lerobot.common.datasets.lerobot_dataset import LeRobotDataset
    except ImportError as error:
        raise PreflightError(
            f"LeRobot, which writes the demo dataset, could not be imported: {error}.", "pip install lerobot"
        ) from error
    return LeRobotDataset


def create(root: Path, resolution: tuple[int, int], frames: int) -> Any:
    """LeRobot's own empty dataset at ``root``, which must not exist; resolution is (height, width) of every camera."""
    vector = {"dtype": "float32", "shape": (len(JOINT_NAMES),), "names": list(JOINT_NAMES)}
    video = {"dtype": "video", "shape": (*resolution, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": dict(vector), "action": dict(vector)} | {name: dict(video) for name in CAMERAS}
    kind = _lerobot_dataset()
    accepted = inspect.signature(kind.create).parameters
    streams = frames * len(CAMERAS) * resolution[0] * resolution[1] * 3 <= _STREAM_BYTES
    wishes: dict[str, Any] = {
        "video_backend": "pyav",  # LeRobot would look for torchcodec and warn; nothing is decoded here
        "vcodec": "h264",  # encodes and decodes faster than AV1, and every PyAV wheel brings it
        # Without this every frame is first written as PNG.
        "streaming_encoding": streams,
        # LeRobot drops frames that find this queue full, because it was made for recording.
        "encoder_queue_maxsize": frames + 1,
        "encoder_threads": 1,
    }
    if "rgb_encoder" in accepted:  # LeRobot 0.6 took over from vcodec
        from lerobot.configs.video import RGBEncoderConfig

        wishes["rgb_encoder"] = RGBEncoderConfig(vcodec="h264")
    return kind.create(
        repo_id=REPO_ID,
        fps=FPS,
        features=features,
        root=root,
        robot_type="preflight_demo",
        use_videos=True,
        **{name: value for name, value in wishes.items() if name in accepted},
    )


def frame_adder(dataset: Any) -> Callable[[dict[str, Any]], None]:
    """A function that adds a frame, with the demo's task, whatever the version wants to be told."""
    # LeRobot 0.2 and 0.3 take the task beside the frame, all others inside it.
    if "task" in inspect.signature(dataset.add_frame).parameters:
        return lambda frame: dataset.add_frame(frame, task=TASK)
    return lambda frame: dataset.add_frame(frame | {"task": TASK})


def save_episode(dataset: Any) -> None:
    """Ends the episode that the last frames were added to."""
    # Encoding in parallel would fork a process that has threads.
    serial = (
        {"parallel_encoding": False}
        if "parallel_encoding" in inspect.signature(dataset.save_episode).parameters
        else {}
    )
    with _no_progress_bars():
        dataset.save_episode(**serial)


def finalize(dataset: Any) -> None:
    """Closes the dataset's files."""
    if hasattr(dataset, "finalize"):  # since format v3.0
        dataset.finalize()


def abandon(dataset: Any) -> None:
    """Lets go of files and threads before the folder goes; whatever fails here, the first error is the one to tell."""
    if dataset is not None:
        with contextlib.suppress(Exception):
            finalize(dataset)


def require_complete(root: Path, total: int) -> None:
    """Counts what is in the videos, because LeRobot's streaming encoder may drop frames under load."""
    import av

    for camera in CAMERAS:
        counted = 0
        for path in sorted(root.glob(f"videos/**/{camera}/**/*.mp4")):
            with av.open(str(path)) as video:
                counted += video.streams.video[0].frames
        if counted != total:
            raise PreflightError(
                f"LeRobot encoded {counted} of {total} frames of {camera}.", "Try again while the machine is less busy."
            )
