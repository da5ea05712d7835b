"""`python -m bench.data_scale`: `data.metadata` on 10 000 episodes of each format, against the budget."""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench import synthetic_dataset
from bench.processes import ProcessTime, time_process

FRAMES = 100  # an episode
CAMERA = "observation.images.cam_high"
_BUDGET = "10 s"

# A fresh process asks what the check asks; the checklist's own start is measured by bench.static.
_CHECK = """
import sys, pathlib
from preflight.data.metadata import read_info
from preflight.data.integrity import find_problems
sys.exit(bool(find_problems(read_info(pathlib.Path(sys.argv[1])))))
"""


def write_dataset(root: Path, version: str, episodes: int) -> None:
    """Writes episodes of which each has the same noise for state and actions, and one camera.

    Args:
        root: A folder that does not exist.
        version: "v2.1" or "v3.0".
        episodes: How many.
    """
    a_file = 1 if version == "v2.1" else min(episodes, synthetic_dataset.EPISODES_A_FILE)
    noise = np.random.default_rng(0).standard_normal((a_file * FRAMES, synthetic_dataset.WIDTH))

    def motion(count: int) -> tuple[np.ndarray, np.ndarray]:
        return noise[: count * FRAMES], noise[: count * FRAMES]

    synthetic_dataset.write_dataset(root, version, episodes, frames=FRAMES, motion=motion, camera=CAMERA)


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
