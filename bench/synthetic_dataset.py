"""LeRobot datasets of any number of episodes, written in seconds: metadata and parquet, no real picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WIDTH = 14  # of state and action, as of two ALOHA arms
FPS = 50
_TASK = "Light the cup."
EPISODES_A_FILE = 1000  # in format v3.0: at 500 frames an episode 56 MB a file, of the 100 that LeRobot fills
_EPISODES_A_CHUNK = 1000

# Given a number of episodes, their state and actions: float[episodes * frames, WIDTH], or a shape of so many values.
Motion = Callable[[int], tuple[np.ndarray, np.ndarray]]


def write_dataset(
    root: Path, version: str, episodes: int, *, frames: int, motion: Motion, camera: str | None = None
) -> None:
    """Writes a dataset that is sound but for its videos, which are placeholders of one byte.

    Args:
        root: A folder that does not exist.
        version: "v2.1", with a file for each episode, or "v3.0".
        episodes: How many.
        frames: Of each episode.
        motion: Makes the state and the actions of one file's episodes.
        camera: The key of a 480x640 camera; with one there are placeholders and LeRobot's statistics files.
    """
    v21 = version == "v2.1"
    meta = root / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps(_info(version, episodes, frames, camera)))
    a_file = 1 if v21 else EPISODES_A_FILE
    for number, first in enumerate(range(0, episodes, a_file)):
        count = min(a_file, episodes - first)
        chunk = f"chunk-{number // _EPISODES_A_CHUNK:03d}" if v21 else "chunk-000"
        name = f"episode_{number:06d}" if v21 else f"file-{number:03d}"
        data = root / "data" / chunk / f"{name}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_rows(first, count, frames, *motion(count)), data)
        if camera is not None:
            folder = root / "videos" / (f"{chunk}/{camera}" if v21 else f"{camera}/{chunk}")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.mp4").write_bytes(b"0")
    (_list_v21 if v21 else _list_v30)(meta, episodes, frames, camera)


def _rows(first: int, count: int, frames: int, state: np.ndarray, actions: np.ndarray) -> pa.Table:
    frame = np.tile(np.arange(frames), count)

    def vectors(values: np.ndarray) -> pa.Array:
        flat = pa.array(values.astype(np.float32).reshape(-1))
        return pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, WIDTH, dtype=np.int32), flat)

    return pa.table(
        {
            "observation.state": vectors(state),
            "action": vectors(actions),
            "timestamp": (frame / FPS).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.repeat(np.arange(first, first + count), frames),
            "index": np.arange(first * frames, (first + count) * frames),
            "task_index": np.zeros(len(frame), np.int64),
        }
    )


def _list_v21(meta: Path, episodes: int, frames: int, camera: str | None) -> None:
    _write_lines(meta / "episodes.jsonl", episodes, {"tasks": [_TASK], "length": frames})
    (meta / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": _TASK}) + "\n")
    if camera is not None:
        stats = {"action": {name: [0.0] * WIDTH for name in ("min", "max", "mean", "std")}}
        _write_lines(meta / "episodes_stats.jsonl", episodes, {"stats": stats})


def _write_lines(path: Path, episodes: int, row: dict[str, Any]) -> None:
    lines = [json.dumps({"episode_index": episode, **row}) for episode in range(episodes)]
    path.write_text("\n".join(lines) + "\n")


def _list_v30(meta: Path, episodes: int, frames: int, camera: str | None) -> None:
    number = np.arange(episodes)
    file, zero = number // EPISODES_A_FILE, np.zeros(episodes, np.int64)
    columns: dict[str, Any] = {
        "episode_index": number,
        "length": np.full(episodes, frames),
        "dataset_from_index": number * frames,
        "dataset_to_index": (number + 1) * frames,
        "data/chunk_index": zero,
        "data/file_index": file,
    }
    if camera is not None:
        columns |= {
            f"videos/{camera}/chunk_index": zero,
            f"videos/{camera}/file_index": file,
            f"videos/{camera}/from_timestamp": (number % EPISODES_A_FILE) * frames / FPS,
        }
        (meta / "stats.json").write_text("{}")
    folder = meta / "episodes" / "chunk-000"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "file-000.parquet")
    pq.write_table(pa.table({"task_index": [0], "task": [_TASK]}), meta / "tasks.parquet")


def _info(version: str, episodes: int, frames: int, camera: str | None) -> dict[str, Any]:
    v21 = version == "v2.1"
    file = "episode_{episode_index:06d}" if v21 else "file-{file_index:03d}"
    chunk = "chunk-{episode_chunk:03d}" if v21 else "chunk-{chunk_index:03d}"
    film = f"videos/{chunk}/{{video_key}}/{file}.mp4" if v21 else f"videos/{{video_key}}/{chunk}/{file}.mp4"
    vector = {"dtype": "float32", "shape": [WIDTH], "names": None}
    picture = {"dtype": "video", "shape": [480, 640, 3], "names": ["height", "width", "channels"]}
    integers = ("frame_index", "episode_index", "index", "task_index")
    return {
        "codebase_version": version,
        "robot_type": "aloha",
        "fps": FPS,
        "total_episodes": episodes,
        "total_frames": episodes * frames,
        "total_tasks": 1,
        "chunks_size": _EPISODES_A_CHUNK,
        "splits": {"train": f"0:{episodes}"},
        "data_path": f"data/{chunk}/{file}.parquet",
        "video_path": None if camera is None else film,
        "features": {
            "observation.state": vector,
            "action": vector,
            **({} if camera is None else {camera: picture}),
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **{key: {"dtype": "int64", "shape": [1], "names": None} for key in integers},
        },
    }
