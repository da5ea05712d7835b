"""What is wrong with a dataset, one sentence at a time."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a dataset's metadata or files."""

    message: str  # a sentence that names the file, and the episode where there is one
    fatal: bool = True  # it stops a training or gives it wrong frames; otherwise it is merely untidy
    hint: str | None = None  # what mends it; None in what is not fatal: nothing that the run reads depends on it
    unusable: bool = False  # it is about a file that the run needs and that is missing, empty or no content


def named(episodes: list[int]) -> str:
    """Names episodes in a message: "episode 3", "episodes 3, 5", "episodes 3 to 70"."""
    if len(episodes) == 1:
        return f"episode {episodes[0]}"
    if len(episodes) <= 5:
        return f"episodes {', '.join(map(str, episodes))}"
    return f"episodes {episodes[0]} to {episodes[-1]}"
