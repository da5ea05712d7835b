"""What the checklist foretold of a run, for the watch to hold it against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from preflight.report.run_forecast import foretold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """None where nothing was foretold."""

    steps_per_sec: tuple[float, float] | None = None  # low and high
    data_wait: tuple[float, float] | None = None  # share of the time, low and high
    checkpoint_bytes: float | None = None  # on the disk, at most

    @classmethod
    def read(cls, clearance: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> Forecast:
        """From the document of the checklist.

        Args:
            clearance: What `clearance.json` holds; None where the run was started without checks.
            settings: What `config.json` holds, with `batch_size` and `num_workers`.
        """
        rows = foretold(clearance, settings)
        checkpoint = rows["checkpoint"]
        return cls(
            steps_per_sec=rows["pace"],
            data_wait=rows["data-wait"],
            checkpoint_bytes=checkpoint[1] if checkpoint else None,
        )
