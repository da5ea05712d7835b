"""The demo dataset: a few short demonstrations of "put the lighter in the cup", made on first use and then kept.

LeRobot writes it, through its own API, so that it is what a user's own recordings are.
"""

import contextlib
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from preflight.data import demo_writer
from preflight.data.atomic import explain, folder_lock, written_whole
from preflight.data.demo_motion import Episode, plan_episode
from preflight.data.demo_scene import CAMERAS, draw_frames
from preflight.errors import PreflightError, UsageError

DEFAULT_EPISODES = 4
DEFAULT_FRAMES = 80
DEFAULT_RESOLUTION = (240, 320)

Progress = Callable[[int, int], None]

_CHUNK = 15  # frames drawn in one go
_AHEAD_BYTES = 192 << 20  # drawn frames that may wait for the encoder
# Bytes on disk for a byte of pixels: four times the 0.0085 measured at 240x320 (h264, crf 30), because LeRobot rewrites
# a camera's whole file whenever an episode joins it.
_COMPRESSED = 0.034


def cache_root() -> Path:
    """``$PREFLIGHT_CACHE``, else ``$XDG_CACHE_HOME/preflight``, else ``~/.cache/preflight``."""
    if own := os.environ.get("PREFLIGHT_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "preflight"


def demo_dataset_root() -> Path:
    """Where the demo dataset is kept. The name changes with the code that draws it and with LeRobot's version."""
    recipe = hashlib.sha256()
    for name in ("demo.py", "demo_motion.py", "demo_scene.py", "demo_solids.py", "demo_writer.py"):
        recipe.update((files("preflight.data") / name).read_bytes())
    return cache_root() / "demo" / f"lighter-cup-{recipe.hexdigest()[:10]}-lerobot-{_lerobot_version()}"


def ensure_demo_dataset(progress: Progress | None = None) -> Path:
    """The folder of the demo dataset, which is made if it is not there yet.

    Where two processes start at once, one writes and the other waits for it.

    Args:
        progress: Called as ``progress(done_frames, total_frames)`` while it is written, never when it is there.

    Raises:
        PreflightError: It could not be written; the sentence says why.
    """
    root = demo_dataset_root()
    if _is_dataset(root):
        return root
    with folder_lock(root) as locked:
        if not _is_dataset(root):
            try:
                _write(root, DEFAULT_EPISODES, DEFAULT_RESOLUTION, 0, DEFAULT_FRAMES, progress, locked=locked)
            except UsageError:
                raise
            except PreflightError as error:
                hint = f"{error.hint or ''} PREFLIGHT_CACHE names the folder where the demo dataset is kept.".strip()
                raise PreflightError(error.message, hint) from error
    return root


def write_demo_dataset(
    output: Path,
    *,
    episodes: int = DEFAULT_EPISODES,
    resolution: tuple[int, int] = DEFAULT_RESOLUTION,
    seed: int = 0,
    frames_per_episode: int = DEFAULT_FRAMES,
    progress: Progress | None = None,
) -> None:
    """Writes a demo dataset in the format of the LeRobot that is installed.

    The same arguments give the same columns and, before encoding, the same pixels. The folder appears when it is
    complete: whatever interrupts the writing, there is never half a dataset.

    Args:
        output: The folder to make.
        episodes: How many demonstrations.
        resolution: (height, width) of each of the three cameras, even numbers.
        seed: Another seed gives other positions, colours and timing.
        frames_per_episode: Length of a demonstration, at 30 frames a second.
        progress: Called as ``progress(done_frames, total_frames)``.

    Raises:
        UsageError: The folder exists and is not empty, or an argument is out of range.
        PreflightError: It cannot be written (no permission, no space), or LeRobot cannot be imported.
    """
    height, width = resolution
    if episodes < 1:
        raise UsageError(f"A demo dataset needs at least 1 episode, not {episodes}.")
    if frames_per_episode < 10:
        raise UsageError(f"An episode of the demo needs at least 10 frames, not {frames_per_episode}.")
    if min(height, width) < 32 or height % 2 or width % 2:
        raise UsageError(
            f"The demo cannot be drawn at {height}x{width}.", "Height and width must be even numbers of at least 32."
        )
    target = Path(os.path.abspath(Path(output).expanduser()))
    _refuse_occupied(target)
    with folder_lock(target) as locked:
        _refuse_occupied(target)
        _write(target, episodes, resolution, seed, frames_per_episode, progress, locked=locked)


def _lerobot_version() -> str:
    try:
        return metadata.version("lerobot")
    except metadata.PackageNotFoundError:
        return "missing"


def _is_dataset(root: Path) -> bool:
    return (root / "meta" / "info.json").is_file()


def _refuse_occupied(target: Path) -> None:
    try:
        occupied = target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir())))
    except OSError as error:
        raise explain(error, target) from error
    if occupied:
        raise UsageError(
            f"{target} already exists and is not an empty folder.", "Name another folder, or remove that one first."
        )


def _write(
    target: Path,
    episodes: int,
    resolution: tuple[int, int],
    seed: int,
    frames: int,
    progress: Progress | None,
    *,
    locked: bool,
) -> None:
    _refuse_occupied(target)
    pixels = episodes * frames * len(CAMERAS) * resolution[0] * resolution[1] * 3
    _require_space(target, int(_COMPRESSED * pixels) + (2 << 20))
    total = episodes * frames
    with (
        written_whole(target, locked=locked) as partial,
        _drawn_ahead(episodes, frames, resolution, seed) as chunks,
        demo_writer.quiet(),
    ):
        dataset = None
        try:
            # Pictures are drawn on another thread while LeRobot is imported, which takes longer than all the rest.
            dataset = demo_writer.create(partial, resolution, frames)
            add = demo_writer.frame_adder(dataset)
            done = 0
            with demo_writer.exact_pixel_statistics():
                for episode, start, pictures in chunks:
                    for k in range(len(pictures[CAMERAS[0]])):
                        frame: dict[str, Any] = {name: pictures[name][k] for name in CAMERAS}
                        frame["observation.state"] = episode.state[start + k]
                        frame["action"] = episode.action[start + k]
                        add(frame)
                        done += 1
                        if progress is not None:
                            progress(done, total)
                    if done % frames == 0:
                        demo_writer.save_episode(dataset)
                demo_writer.finalize(dataset)
            demo_writer.require_complete(partial, total)
        except BaseException as error:
            demo_writer.abandon(dataset)
            # The encoder threads pass an OSError on as RuntimeError.
            if isinstance(error, OSError | RuntimeError):
                raise explain(error, target) from error
            raise


def _require_space(target: Path, needed: int) -> None:
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise explain(error, target) from error
    if free < needed:
        raise PreflightError(
            f"{target} needs about {needed >> 20} MiB, and its disk has {free >> 20} MiB left.",
            "Free some space, or choose a folder on another disk.",
        )


_Chunk = tuple[Episode, int, dict[str, np.ndarray]]


@contextlib.contextmanager
def _drawn_ahead(episodes: int, frames: int, resolution: tuple[int, int], seed: int) -> Iterator[Iterator[_Chunk]]:
    """Draws on one other thread, a bounded number of bytes ahead of whoever consumes."""

    def draw(index: int, start: int) -> _Chunk:
        episode = plan_episode(index, frames, seed)
        return episode, start, draw_frames(episode, start, min(start + _CHUNK, frames), resolution)

    jobs = ((index, start) for index in range(episodes) for start in range(0, frames, _CHUNK))
    depth = max(2, _AHEAD_BYTES // (_CHUNK * len(CAMERAS) * resolution[0] * resolution[1] * 3))
    pool = ThreadPoolExecutor(1, thread_name_prefix="preflight-demo")
    waiting: deque[Future[_Chunk]] = deque()

    def advance() -> None:
        if job := next(jobs, None):
            waiting.append(pool.submit(draw, *job))

    def consume() -> Iterator[_Chunk]:
        while waiting:
            chunk = waiting.popleft().result()
            advance()
            yield chunk

    try:
        for _ in range(depth):
            advance()
        yield consume()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
