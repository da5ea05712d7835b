"""How many checks came out how, in words."""

from collections import Counter
from collections.abc import Iterable, Sequence

# Each status with its singular and plural; the order is the order of the sentence.
_WORDS = {
    "pass": ("passed", "passed"),
    "warn": ("warning", "warnings"),
    "fail": ("failed", "failed"),
    "error": ("error", "errors"),
    "skip": ("skipped", "skipped"),
}


def tally(statuses: Iterable[str]) -> str:
    """For example "11 passed, 1 warning, 1 failed, 1 skipped"; what did not occur is left out."""
    counts = Counter(statuses)
    return ", ".join(
        f"{n} {one if n == 1 else many}" for status, (one, many) in _WORDS.items() if (n := counts[status])
    )


def blind(statuses: Sequence[str]) -> bool:
    """Whether every check was skipped, so that a clean verdict rests on nothing."""
    return bool(statuses) and all(status == "skip" for status in statuses)
