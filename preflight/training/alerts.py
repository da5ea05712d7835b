"""What the watch says of a run, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preflight.config.watch_rules import Rule

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alert:
    """That a rule holds, said once until it has ceased to hold for a while."""

    rule: str
    severity: str  # note, warn or stop; typed as it is in Rule
    step: int | None  # at which it was seen; None before the first
    window: tuple[int, int] | None  # the first and the last step that it is about
    message: str  # what was seen
    advice: str
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # plain values

    def to_json(self) -> dict[str, Any]:
        """As a line of `alerts.jsonl`."""
        return {**dataclasses.asdict(self), "window": None if self.window is None else list(self.window)}

    def __str__(self) -> str:
        """For the terminal."""
        where = "" if self.step is None else f" at step {self.step}"
        return f"{self.severity}: {self.rule}{where}: {self.message}. {self.advice}"


def alert_of(rule: Rule, step: int | None, window: tuple[int, int] | None, message: str, **measured: Any) -> Alert:
    """A rule's alert."""
    return Alert(
        rule=rule.id,
        severity=rule.severity,
        step=step,
        window=window,
        message=message,
        advice=rule.advice,
        measured=measured,
    )


class AlertLog:
    """`alerts.jsonl`: made with the first alert; safe to write to from several threads; a full disk stops nothing.

    Until `open`, alerts wait: a run has no folder before its first step has succeeded.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._waiting: list[str] = []
        self._lock = threading.Lock()

    def open(self, path: Path) -> None:
        """From now on, appends to this file, first what has waited."""
        with self._lock:
            self._path = path
            self._flush()

    def write(self, alert: Alert) -> None:
        """Appends an alert."""
        with self._lock:
            self._waiting.append(json.dumps(alert.to_json()) + "\n")
            self._flush()

    def _flush(self) -> None:
        if self._path is None or not self._waiting:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(self._waiting))
        except OSError as error:  # kept for the next time: an alert about a full disk must not be lost to it
            logger.warning("%s cannot be written: %s", self._path, error.strerror or error)
            return
        self._waiting.clear()
