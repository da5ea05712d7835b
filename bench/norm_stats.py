"""`python -m bench.norm_stats`: `preflight norm-stats` on a million frames of 14 dimensions, against the budget."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.processes import preflight_command, time_process

FRAMES = 500  # an episode
WIDTH = 14  # of state and action, as of two ALOHA arms
HORIZON = 50
FPS = 50
# Relative to the state but for the grippers, and all of them.
_MASKS = ((6, -1, 6, -1), (14,))
_EPISODES_A_FILE = 1000  # in format v3.0: 56 MB a file, of the 100 that LeRobot fills
_BUDGET = "20 s"


def write_dataset(root: Path, version: str, episodes: int) -> None:
    """Writes a dataset of random motion: parquet files and metadata, no camera.

    Args:
        root: A folder that does not exist.
        version: "v2.1" or "v3.0".
        episodes: How many, of `FRAMES` each.
    """
    v21 = version == "v2.1"
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(_info(v21, episodes)))
    rng = np.random.default_rng(0)
    a_file = 1 if v21 else _EPISODES_A_FILE
    for number, first in enumerate(range(0, episodes, a_file)):
        count = min(a_file, episodes - first)
        name = f"chunk-{number // 1000:03d}/episode_{number:06d}" if v21 else f"chunk-000/file-{number:03d}"
        path = root / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_rows(rng, first, count), path)
    if v21:
        row = {"tasks": ["Light the cup."], "length": FRAMES}
        lines = [json.dumps({"episode_index": episode, **row}) for episode in range(episodes)]
        (root / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
        (root / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "Light the cup."}) + "\n")
        return
    indices = np.arange(episodes)
    listed = {
        "episode_index": indices,
        "length": np.full(episodes, FRAMES),
        "dataset_from_index": indices * FRAMES,
        "dataset_to_index": (indices + 1) * FRAMES,
        "data/chunk_index": np.zeros(episodes, np.int64),
        "data/file_index": indices // _EPISODES_A_FILE,
    }
    folder = root / "meta" / "episodes" / "chunk-000"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(listed), folder / "file-000.parquet")
    pq.write_table(pa.table({"task_index": [0], "task": ["Light the cup."]}), root / "meta" / "tasks.parquet")


def _rows(rng: np.random.Generator, first: int, episodes: int) -> pa.Table:
    """Joints that wander about a pose of the episode's own; actions lead the state by a tenth of a second."""
    poses = rng.standard_normal((episodes, 1, WIDTH))
    motion = np.cumsum(rng.standard_normal((episodes, FRAMES + 5, WIDTH)) * 0.02, axis=1) + poses
    frame = np.tile(np.arange(FRAMES), episodes)

    def vectors(values: np.ndarray) -> pa.Array:
        flat = pa.array(values.astype(np.float32).reshape(-1))
        return pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, WIDTH, dtype=np.int32), flat)

    return pa.table(
        {
            "observation.state": vectors(motion[:, :-5]),
            "action": vectors(motion[:, 5:]),
            "timestamp": (frame / FPS).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.repeat(np.arange(first, first + episodes), FRAMES),
            "index": np.arange(first * FRAMES, (first + episodes) * FRAMES),
            "task_index": np.zeros(len(frame), np.int64),
        }
    )


def _info(v21: bool, episodes: int) -> dict[str, Any]:
    vector = {"dtype": "float32", "shape": [WIDTH], "names": None}
    file = "episode_{episode_index:06d}" if v21 else "file-{file_index:03d}"
    chunk = "chunk-{episode_chunk:03d}" if v21 else "chunk-{chunk_index:03d}"
    integers = ("frame_index", "episode_index", "index", "task_index")
    return {
        "codebase_version": "v2.1" if v21 else "v3.0",
        "robot_type": "aloha",
        "fps": FPS,
        "total_episodes": episodes,
        "total_frames": episodes * FRAMES,
        "total_tasks": 1,
        "chunks_size": 1000,
        "splits": {"train": f"0:{episodes}"},
        "data_path": f"data/{chunk}/{file}.parquet",
        "video_path": None,
        "features": {
            "observation.state": vector,
            "action": vector,
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **{key: {"dtype": "int64", "shape": [1], "names": None} for key in integers},
        },
    }


def main() -> None:
    """Prints a table: median, minimum and maximum of the runs, peak RSS, budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=2000, help=f"of {FRAMES} frames")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write some 300 MB for the time being; else the system's")
    arguments = parser.parse_args()
    frames = arguments.episodes * FRAMES
    print(
        f"{f'norm-stats, {frames:,} frames of {WIDTH}, horizon {HORIZON}':48} {'wall, median [min, max]':24}  "
        f"{'peak RSS':>8}   budget"
    )
    for version in ("v2.1", "v3.0"):
        folder = Path(tempfile.mkdtemp(prefix="preflight-norm-stats-", dir=arguments.folder))
        try:
            write_dataset(folder / "set", version, arguments.episodes)
            for mask in _MASKS:
                (folder / "run.toml").write_text(
                    'base = "pi0_lighter_cup_demo"\n[data]\nroot = "set"\nstate = "observation.state"\n'
                    f'actions = "action"\ncameras = {{}}\ndelta_actions = {list(mask)}\n'
                    f"[model]\naction_horizon = {HORIZON}\n"
                )
                took = time_process(preflight_command("norm-stats", str(folder / "run.toml")), runs=arguments.runs)
                print(f"{f'{version}, delta {mask}':48} {took}   {_BUDGET}", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
