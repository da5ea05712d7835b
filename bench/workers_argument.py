"""The list of worker counts to measure, as the user writes it."""

from __future__ import annotations

from collections.abc import Sequence

from preflight.errors import UsageError
from preflight.telemetry.cpus import usable_cpus

# Workers that wait for a disk or a network can outnumber the CPUs, but eight times is beyond any use; 64 leaves room
# to try on a small machine what a large one will do.
CAP_PER_CPU = 8
CAP_AT_LEAST = 64


def parse_workers(text: str, *, cpus: float | None = None) -> tuple[int, ...]:
    """Read ``"2,4,8"``.

    Args:
        text: Comma-separated whole numbers; 0 means loading in the process itself.
        cpus: Usable CPUs, for the cap; by default those of this process.

    Raises:
        UsageError: Empty, not a number, negative, twice the same, or more than the cap.
    """
    parts = [part.strip() for part in text.split(",")]
    hint = "Give worker counts like --workers 2,4,8; 0 loads in the process itself."
    if not any(parts):
        raise UsageError("--workers names no number.", hint=hint)
    counts: list[int] = []
    for part in parts:
        try:
            counts.append(int(part))
        except ValueError:
            raise UsageError(f"--workers {text}: {part!r} is not a whole number.", hint=hint) from None
    return check_workers(counts, cpus=cpus)


def check_workers(counts: Sequence[int], *, cpus: float | None = None) -> tuple[int, ...]:
    """Refuse worker counts that cannot be meant; for the arguments see ``parse_workers``.

    Raises:
        UsageError: None at all, a negative one, twice the same, or more than the cap.
    """
    if not counts:
        raise UsageError("No number of workers to measure.", hint="Give some, like 2, 4 and 8.")
    usable = usable_cpus().count if cpus is None else cpus
    cap = max(CAP_AT_LEAST, int(CAP_PER_CPU * usable))
    for position, count in enumerate(counts):
        if count < 0:
            raise UsageError(f"{count} workers: the number cannot be negative.", hint="0 loads in the process itself.")
        if count > cap:
            raise UsageError(
                f"{count} workers are more than the {cap} that are allowed here: "
                f"{CAP_PER_CPU} for each of {usable:g} usable CPUs, and at least {CAP_AT_LEAST}.",
                hint="Every worker is a process with its own memory; more than the CPUs seldom load faster.",
            )
        if count in counts[:position]:
            raise UsageError(f"{count} workers are named twice.", hint="Name each number once.")
    return tuple(counts)
