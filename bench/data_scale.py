"""`python -m bench.data_scale`: `data.metadata` on 10 000 episodes of each format, against the budget."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.processes import ProcessTime, time_process

FRAMES = 100  # an episode
WIDTH = 14  # of state and action, as of two ALOHA arms
FPS = 50
CAMERA = "observation.images.cam_high"
_EPISODES_A_FILE = 1000  # in format v3.0
_BUDGET = "10 s"

# A fresh process asks what the check asks; the checklist's own start is measured by bench.static.
_CHECK = """
import sys, pathlib
from preflight.data.metadata import read_info
from preflight.data.integrity import find_problems
sys.exit(bool(find_problems(read_info(pathlib.Path(sys.argv[1])))))
"""


def write_dataset(root: Path, version: str, episodes: int) -> None:
    """Writes a dataset that is sound but for its videos, which are placeholders of one byte.

    Args:
        root: A folder that does not exist.
        version: "v2.1" or "v3.0".
        episodes: How many.
    """
    one_file_per_episode = version == "v2.1"
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(_info(version, episodes)))
    a_file = 1 if one_file_per_episode else _EPISODES_A_FILE
    rng = np.random.default_rng(0)
    values = rng.standard_normal((a_file * FRAMES, WIDTH)).astype(np.float32)
    for number, first in enumerate(range(0, episodes, a_file)):
        if one_file_per_episode:
            chunk, name, film = number // 1000, f"episode_{number:06d}", f"chunk-{number // 1000:03d}/{CAMERA}"
        else:
            chunk, name, film = 0, f"file-{number:03d}", f"{CAMERA}/chunk-000"
        data, video = root / "data" / f"chunk-{chunk:03d}", root / "videos" / film
        data.mkdir(parents=True, exist_ok=True)
        video.mkdir(parents=True, exist_ok=True)
        count = min(a_file, episodes - first)
        pq.write_table(_rows(first, count, values[: count * FRAMES]), data / f"{name}.parquet")
        (video / f"{name}.mp4").write_bytes(b"0")
    (_list_v21 if one_file_per_episode else _list_v30)(root / "meta", episodes)


def _rows(first: int, count: int, values: np.ndarray) -> pa.Table:
    vectors = pa.array(list(values), pa.list_(pa.float32()))
    frame = np.tile(np.arange(FRAMES), count)
    return pa.table(
        {
            "observation.state": vectors,
            "action": vectors,
            "timestamp": (frame / FPS).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.repeat(np.arange(first, first + count), FRAMES),
            "index": np.arange(first * FRAMES, (first + count) * FRAMES),
            "task_index": np.zeros(count * FRAMES, np.int64),
        }
    )


def _list_v21(meta: Path, episodes: int) -> None:
    lines = [json.dumps({"episode_index": e, "tasks": ["Light the cup."], "length": FRAMES}) for e in range(episodes)]
    (meta / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    (meta / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "Light the cup."}) + "\n")
    stats = {"action": {name: [0.0] * WIDTH for name in ("min", "max", "mean", "std")}}
    lines = [json.dumps({"episode_index": e, "stats": stats}) for e in range(episodes)]
    (meta / "episodes_stats.jsonl").write_text("\n".join(lines) + "\n")


def _list_v30(meta: Path, episodes: int) -> None:
    number = np.arange(episodes)
    file, zero = number // _EPISODES_A_FILE, np.zeros(episodes, np.int64)
    columns: dict[str, Any] = {
        "episode_index": number,
        "length": np.full(episodes, FRAMES),
        "dataset_from_index": number * FRAMES,
        "dataset_to_index": (number + 1) * FRAMES,
        "data/chunk_index": zero,
        "data/file_index": file,
        f"videos/{CAMERA}/chunk_index": zero,
        f"videos/{CAMERA}/file_index": file,
        f"videos/{CAMERA}/from_timestamp": (number % _EPISODES_A_FILE) * FRAMES / FPS,
    }
    folder = meta / "episodes" / "chunk-000"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "file-000.parquet")
    pq.write_table(pa.table({"task_index": [0], "task": ["Light the cup."]}), meta / "tasks.parquet")
    (meta / "stats.json").write_text("{}")


def _info(version: str, episodes: int) -> dict[str, Any]:
    vector = {"dtype": "float32", "shape": [WIDTH], "names": None}
    v21 = version == "v2.1"
    name = (
        "chunk-{episode_chunk:03d}/%sepisode_{episode_index:06d}"
        if v21
        else "chunk-{chunk_index:03d}/%sfile-{file_index:03d}"
    )
    return {
        "codebase_version": version,
        "robot_type": "aloha",
        "fps": FPS,
        "total_episodes": episodes,
        "total_frames": episodes * FRAMES,
        "total_tasks": 1,
        "chunks_size": 1000,
        "splits": {"train": f"0:{episodes}"},
        "data_path": f"data/{name % ''}.parquet",
        "video_path": f"videos/{name % '{video_key}/'}.mp4" if v21 else f"videos/{{video_key}}/{name % ''}.mp4",
        "features": {
            "observation.state": vector,
            "action": vector,
            CAMERA: {"dtype": "video", "shape": [480, 640, 3], "names": ["height", "width", "channels"]},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **{
                key: {"dtype": "int64", "shape": [1], "names": None}
                for key in ("frame_index", "episode_index", "index", "task_index")
            },
        },
    }


def main() -> None:
    """Prints a table: median, minimum and maximum of five runs, peak RSS, budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where to write some 250 MB for the time being; else the system's")
    arguments = parser.parse_args()
    print(f"{'data.metadata':40} {'wall, median [min, max]':24}  {'peak RSS':>8}   budget")
    for version in ("v2.1", "v3.0"):
        for episodes in (arguments.episodes // 10, arguments.episodes):
            folder = Path(tempfile.mkdtemp(prefix="preflight-scale-", dir=arguments.folder))
            try:
                # In a process of its own: a child's peak RSS begins with its parent's.
                writer = multiprocessing.get_context("spawn").Process(
                    target=write_dataset, args=(folder / "set", version, episodes)
                )
                writer.start()
                writer.join()
                if writer.exitcode:
                    raise RuntimeError(f"the dataset could not be written in {folder}")
                took: ProcessTime = time_process([sys.executable, "-c", _CHECK, str(folder / "set")])
            finally:
                shutil.rmtree(folder)
            budget = _BUDGET if episodes == arguments.episodes else ""
            print(f"{f'{version}, {episodes:,} episodes':40} {took}   {budget}", flush=True)


if __name__ == "__main__":
    main()
