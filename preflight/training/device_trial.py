"""Whether the devices compute, and with each other: tried in a process of its own (`trial_child`), which may hang."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("trial_child.py")
_LEAVE_S = 5.0  # a process in the driver's hands may not even leave when it is killed
_LAST_LINES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of it."""

    backend: str | None = None  # jax's, once it has one
    devices: tuple[str, ...] = ()  # their kinds
    # Of each stage that ended: "start" (jax finds the devices), "compute" (on each), "exchange" (a sum over all of
    # them; not with one).
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    stage: str | None = None  # the one that did not end well; None where all did
    hung: bool = False  # whether it was ended because its time was up
    error: str | None = None  # in place of that, what it ended with
    output: tuple[str, ...] = ()  # the last lines on its stderr


def try_devices(
    variables: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 90.0,
    program: Sequence[str] = (sys.executable, "-P", str(_CHILD)),
) -> Trial:
    """Tries all devices that jax finds.

    Args:
        variables: Of the environment, over those of this process.
        timeout_s: Then it hangs. The first use of eight GPUs takes some 20 s.
        program: Called with the file that it writes its stages to.
    """
    # Looking must not take three quarters of the memory that is looked at.
    environ = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **(variables or {})}
    with tempfile.TemporaryDirectory(prefix="preflight-", ignore_cleanup_errors=True) as folder:
        stages, errors = Path(folder) / "stages", Path(folder) / "stderr"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [*program, str(stages)],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        output = errors.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return _trial(_lines(stages), code, tuple(line[:300] for line in output))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LEAVE_S)


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # one that it was killed in
                found.append(json.loads(line))
    return found


def _trial(lines: list[dict[str, Any]], code: int | None, output: tuple[str, ...]) -> Trial:
    known: dict[str, Any] = {key: value for line in lines for key, value in line.items()}
    seconds = {line["stage"]: line["seconds"] for line in lines if "seconds" in line}
    begun = [line["stage"] for line in lines if "stage" in line]
    open_stage = begun[-1] if begun and begun[-1] not in seconds else None
    error = known.get("error")
    if code and error is None:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        error = f"the process ended with {how}" + (f": {output[-1]}" if output else "")
    failed = code is None or error is not None
    return Trial(
        backend=known.get("backend"),
        devices=tuple(known.get("devices", ())),
        seconds=seconds,
        stage=(open_stage or "start") if failed else None,
        hung=code is None,
        error=error,
        output=output if failed else (),
    )
