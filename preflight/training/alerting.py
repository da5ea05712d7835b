"""Where alerts go: `alerts.jsonl`, the terminal and wandb, from whichever thread; and whether one ends the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from preflight.training.alerts import Alert, AlertLog
from preflight.training.tracking import Tracker

NAME = "alerts.jsonl"


class Alerting:
    """Passes alerts on; the first of severity "stop" is kept as `stop`, for the loop to see.

    Args:
        folder: The run's.
        say: Called with each line meant for the terminal.
        tracker: wandb.
    """

    stop: Alert | None

    def __init__(self, folder: Path, *, say: Callable[[str], None], tracker: Tracker) -> None:
        self.stop = None
        self._say, self._tracker = say, tracker
        self._file = AlertLog()
        self._file.open(folder / NAME)

    def tell(self, alert: Alert) -> None:
        """Passes one on."""
        if alert.severity == "stop" and self.stop is None:
            self.stop = alert
        self._file.write(alert)
        self._say(str(alert))
        self._tracker.alert(alert.rule, f"{alert.message}. {alert.advice}", alert.severity)
