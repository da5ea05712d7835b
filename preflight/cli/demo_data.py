"""`preflight demo-data`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from preflight.errors import UsageError


def demo_data(
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where to write it; must not exist.")],
    episodes: Annotated[int, typer.Option("--episodes", metavar="N", help="How many episodes.")] = 4,
    resolution: Annotated[
        str, typer.Option("--resolution", metavar="HxW", help="Height and width of each camera in pixels.")
    ] = "240x320",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Another seed, another dataset.")] = 0,
) -> None:
    """Write a LeRobot dataset of the demo scene: three cameras, a bimanual robot, "put the lighter in the cup"."""
    from preflight.cli.progress import demo_progress
    from preflight.data.demo import write_demo_dataset

    match = re.fullmatch(r"(\d+)x(\d+)", resolution)
    if match is None:
        raise UsageError(f"--resolution {resolution!r} is not HEIGHTxWIDTH", "for example 480x640")
    height, width = int(match[1]), int(match[2])
    # Video encoders work on pairs of pixels, and below a few dozen nothing can be seen.
    if not all(32 <= n <= 4096 and n % 2 == 0 for n in (height, width)):
        raise UsageError(f"--resolution {resolution}: height and width must be even and between 32 and 4096")
    if episodes < 1:
        raise UsageError(f"--episodes must be at least 1, not {episodes}")
    write_demo_dataset(output, episodes=episodes, resolution=(height, width), seed=seed, progress=demo_progress())
    typer.echo(f"wrote {episodes} episodes to {output}")
