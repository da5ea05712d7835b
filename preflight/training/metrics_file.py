"""`metrics.jsonl`: whole lines only, one a record, also where the disk was full for a while or the run was killed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from preflight.errors import PreflightError
from preflight.whole_file import write_whole

logger = logging.getLogger(__name__)

NAME = "metrics.jsonl"


class MetricsFile:
    """The records of a run, appended one by one.

    What the disk does not take is kept and tried again with the next record.

    Args:
        folder: The run's; the file may be there already.
        start: The first step of this process. Records of later steps, which an interrupted run has written beyond its
            checkpoint, are dropped, and so is a line that was cut short.

    Raises:
        PreflightError: The file cannot be opened, or not be mended.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._path = folder / NAME
        try:
            self.losses = _drop_from(self._path, start)  # of the records that are kept
            self._open()
        except OSError as error:
            raise PreflightError(f"{self._path} cannot be written: {error.strerror or error}") from error
        self._waiting = b""
        self._warned = False

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._length = os.fstat(self._descriptor).st_size

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes a record down; a disk that refuses it is warned about, once."""
        self._waiting += json.dumps(record, allow_nan=False).encode() + b"\n"
        self._write()

    def sync(self) -> None:
        """Puts all records on the disk: a checkpoint must not outlive the records of the steps before it."""
        self._write()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Tries once more what is left to write."""
        self._write()
        os.close(self._descriptor)

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> None:
        left = self._waiting
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            self._warn(error)
            os.ftruncate(self._descriptor, self._length)
            return
        self._length += len(self._waiting)
        self._waiting = b""

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s cannot be written: %s; its records are kept and tried again", self._path, error.strerror or error
            )


def _drop_from(path: Path, start: int) -> list[float]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    kept, losses = [], []
    for line in content.splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            record = json.loads(line)
            if line.endswith(b"\n") and record["step"] < start:
                losses.append(float(record["loss"]))
                kept.append(line)
    if (whole := b"".join(kept)) != content:
        write_whole(path, whole)  # in one step: a run that is killed here has lost nothing
    return losses
