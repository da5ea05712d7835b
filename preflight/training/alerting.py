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
        say: Called with each line meant for the terminal.
    """

    stop: Alert | None

    def __init__(self, say: Callable[[str], None]) -> None:
        self.stop = None
        self._say, self._tracker = say, Tracker(None)
        self._file = AlertLog()

    def open(self, folder: Path, tracker: Tracker) -> None:
        """Passes alerts on to the run's folder and to wandb as well; the file gets those of before, too."""
        self._file.open(folder / NAME)
        self._tracker = tracker

    def tell(self, alert: Alert) -> None:
        """Passes one on."""
        if alert.severity == "stop" and self.stop is None:
            self.stop = alert
        self._file.write(alert)
        self._say(str(alert))
        self._tracker.alert(alert.rule, f"{alert.message}. {alert.advice}", alert.severity)
