"""The limit of a loader that reads frames at random: processes that seek and decode, and do nothing else.

No conversion, no resize, no columns, no transport but a byte for each batch. What a worker decodes is drawn at random
from the whole dataset, every camera of each sample, by one thread of PyAV with its videos kept open.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Float64, Int64

_PREFETCH_FACTOR = 2  # batches that a process works ahead, as the loaders beside it
_MAX_OPEN = 64  # videos of a process
_TOLERANCE_S = 1e-4  # as LeRobot's tolerance_s: the container's times are rounded


@dataclass(frozen=True)
class CameraFrames:
    """Where each frame of one camera lies."""

    paths: tuple[Path, ...]
    file: Int64[np.ndarray, " n"]  # index into paths, of each frame of the dataset
    seconds: Float64[np.ndarray, " n"]  # its time in that file


def camera_frames(root: Path) -> tuple[CameraFrames, ...]:
    """All cameras' frames of a LeRobot dataset.

    Raises:
        DataError: It cannot be read, or has no camera with videos.
    """
    from preflight.data.columns import read_columns
    from preflight.data.episodes import read_episodes
    from preflight.data.metadata import read_info
    from preflight.errors import DataError

    info = read_info(root)
    episodes = read_episodes(info)
    times = read_columns(info, episodes, {"timestamp": np.dtype(np.float64)})["timestamp"].reshape(-1)
    if not episodes.videos:
        raise DataError(f"{root} has no videos: there is nothing to decode")
    of_frame = np.repeat(np.arange(len(episodes)), episodes.length)
    cameras = []
    for key, segments in episodes.videos.items():
        paths = [info.video_file(key, int(c), int(f)) for c, f in zip(segments.chunk, segments.file, strict=True)]
        names, number = np.unique([str(path) for path in paths], return_inverse=True)
        seconds = segments.from_timestamp[of_frame] + times
        cameras.append(CameraFrames(tuple(map(Path, names)), number.reshape(-1)[of_frame], seconds))
    return tuple(cameras)


class DecodeLimit:
    """Decodes batches in processes; what it gives are empty batches, in turn from each.

    Args:
        cameras: What to decode.
        batch_size: Samples in a batch; of each, one frame of every camera is decoded.
        num_workers: Processes, at least 1.
        seed: Of the random order.
    """

    def __init__(self, cameras: tuple[CameraFrames, ...], *, batch_size: int, num_workers: int, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._rng = np.random.default_rng(seed)
        self._shape = (len(cameras[0].file), batch_size)
        self._workers: list[tuple[Any, Connection]] = []
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_decode_batches, args=(cameras, theirs), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))
            for _ in range(_PREFETCH_FACTOR):
                self._ask(ours)

    def worker_pids(self) -> tuple[int, ...]:
        """The processes."""
        return tuple(process.pid for process, _ in self._workers)

    def __iter__(self) -> Iterator[bytes]:
        """Waits for a batch of one process after the other; a process that dies ends it with an EOFError."""
        while True:
            for _, pipe in self._workers:
                done = pipe.recv_bytes()
                self._ask(pipe)
                yield done

    def _ask(self, pipe: Connection) -> None:
        frames, batch_size = self._shape
        pipe.send_bytes(self._rng.integers(frames, size=batch_size).tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, pipe in self._workers:
            process.kill()
            process.join()
            pipe.close()


def _decode_batches(cameras: tuple[CameraFrames, ...], pipe: Connection) -> None:
    videos: dict[Path, OpenVideo] = {}
    while True:
        try:
            asked = np.frombuffer(pipe.recv_bytes(), dtype=np.int64)
        except EOFError:
            return
        for index in asked:
            for camera in cameras:
                path = camera.paths[camera.file[index]]
                if path not in videos:
                    if len(videos) == _MAX_OPEN:
                        del videos[next(iter(videos))]  # the one that was opened first
                    videos[path] = OpenVideo(path)
                videos[path].decode(float(camera.seconds[index]))
        pipe.send_bytes(b"\0")


class OpenVideo:
    """A video that stays open.

    Args:
        path: The video.
    """

    def __init__(self, path: Path) -> None:
        import av

        self._container = av.open(str(path))
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1
        # A frame that begins less than half a frame before the wanted time is the wanted one.
        self._half_s = 0.5 / float(self._stream.average_rate or 30)

    def decode(self, seconds: float) -> Any:
        """The decoder's own picture of that time; None where the video ends before it."""
        unit = self._stream.time_base
        self._container.seek(round((seconds + _TOLERANCE_S) / unit), stream=self._stream)
        for frame in self._container.decode(self._stream):
            if frame.pts * unit > seconds - self._half_s:
                return frame
        return None
