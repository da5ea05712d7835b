"""`python -m bench.feed_slice REQUEST ANSWER`: one loader, measured once in a process that holds nothing else.

Each slice has a process of its own, so that no loader's workers share pages with, or inherit the libraries and threads
of, another one's, and so that one that crashes takes none of the others with it. Spawned workers import this module
again, which is why it imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What one slice of one loader gave; or why there is none."""

    refused: str | None = None  # why it could not be measured, in a sentence
    first_batch_s: float = 0.0
    intervals_s: tuple[float, ...] = ()  # between batches, without warm-up
    cpu_s: float = 0.0  # over the intervals: of the workers, and of the thread that takes the batches
    pss_mib: float | None = None  # of one worker: the peak of the sum, divided by them
    others_cores: float | None = None  # CPUs that other processes used meanwhile, on average

    @classmethod
    def read(cls, path: Path) -> Slice:
        """What `main` wrote."""
        values = json.loads(path.read_text())
        return cls(**{**values, "intervals_s": tuple(values["intervals_s"])})


def measure(request: dict[str, Any]) -> Slice:
    """Opens the loader and measures it.

    Args:
        request: `row`, `seconds`, and the fields of `bench.feed_loaders.Request`.
    """
    from bench.feed_loaders import PREFETCH_FACTOR, ROWS, Request
    from bench.loader_slice import measure_slice
    from bench.point_memory import memory_fields
    from preflight.blame import one_line
    from preflight.errors import PreflightError

    row = next(row for row in ROWS if row.key == request["row"])
    root, run_file, folder = (Path(request[name]) for name in ("root", "run_file", "folder"))
    sizes = {name: request[name] for name in ("batch_size", "num_workers", "seed")}
    asked = Request(root=root, run_file=run_file, folder=folder, **sizes)
    try:
        found = measure_slice(
            row.open(asked),
            num_workers=asked.num_workers,
            prefetch_factor=PREFETCH_FACTOR,
            seconds=request["seconds"],
            enough=lambda intervals: False,
        )
    except PreflightError as error:
        return Slice(refused=error.message)
    except Exception as error:  # noqa: BLE001 - whatever another library raises is why its row is empty
        return Slice(refused=one_line(error))
    return Slice(
        first_batch_s=found.first_batch_s,
        intervals_s=tuple(found.intervals_s),
        cpu_s=found.cpu_s + found.consumer_s,
        pss_mib=memory_fields(asked.num_workers, [found], PREFETCH_FACTOR)["pss_mib"],
        others_cores=None if found.machine is None else found.machine.others_cores,
    )


if __name__ == "__main__":
    result = measure(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(dataclasses.asdict(result)))
