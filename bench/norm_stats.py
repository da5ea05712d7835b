"""`python -m bench.norm_stats`: `preflight norm-stats` on a million frames of 14 dimensions, against the budget."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np

from bench import synthetic_dataset
from bench.processes import preflight_command, time_process
from bench.synthetic_dataset import WIDTH

FRAMES = 500  # an episode
HORIZON = 50
# Relative to the state but for the grippers, and all of them.
_MASKS = ((6, -1, 6, -1), (14,))
_BUDGET = "20 s"


def write_dataset(root: Path, version: str, episodes: int) -> None:
    """Writes a dataset of random motion, without a camera.

    Joints wander about a pose of the episode's own; actions lead the state by a tenth of a second.

    Args:
        root: A folder that does not exist.
        version: "v2.1" or "v3.0".
        episodes: How many, of `FRAMES` each.
    """
    rng = np.random.default_rng(0)

    def motion(count: int) -> tuple[np.ndarray, np.ndarray]:
        poses = rng.standard_normal((count, 1, WIDTH))
        joints = np.cumsum(rng.standard_normal((count, FRAMES + 5, WIDTH)) * 0.02, axis=1) + poses
        return joints[:, :-5], joints[:, 5:]

    synthetic_dataset.write_dataset(root, version, episodes, frames=FRAMES, motion=motion)


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
