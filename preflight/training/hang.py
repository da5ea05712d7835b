"""A watchdog: says that a run stands still, and where, from a thread of its own."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from preflight.config.watch import WatchSettings
from preflight.data.worker_stacks import Frame, WorkerStack, causes
from preflight.errors import EXIT_WATCH_STOPPED
from preflight.training.alerts import Alert, alert_of

logger = logging.getLogger(__name__)

_LOOKS = 10  # in a time-out
_LONGEST_LOOK_S = 5.0
_TELL_S = 30.0  # how long telling may take; what hangs may be the disk that the alert is written to
_MEASURED = 3  # pauses between steps, before they are taken for what this run needs
_REMEMBERED = 1000  # pauses, of which the longest counts


class HangWatch:
    """Speaks where no step ends for far longer than steps take.

    Python's own thread cannot look while a library holds the interpreter's lock for ever; then `faulthandler`, which
    needs no lock, writes all stacks to stderr.

    Args:
        settings: Of the rule `hang`; without it this does nothing.
        on_alert: Called in a thread of this watch's.
        worker_stacks: Tells where the loader's workers are, as `BatchLoader.worker_stacks`.
        folder: Where `hang_<step>.txt` is written, every thread's stack and every worker's; may be set later. Without
            it, they go to the log.
        end: Called with exit code 5 where the rule's severity is "stop": a thread that hangs can end nothing itself.
    """

    folder: Path | None

    def __init__(
        self,
        settings: WatchSettings,
        *,
        on_alert: Callable[[Alert], None],
        worker_stacks: Callable[[], Sequence[WorkerStack]] = tuple,
        folder: Path | None = None,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self.folder = folder
        self._rule = settings.rules.get("hang")
        self._on_alert, self._worker_stacks, self._end = on_alert, worker_stacks, end
        self._lock = threading.Lock()
        self._step: int | None = None
        self._since = time.monotonic()  # the last step's end
        self._doing: str | None = None
        self._told = False
        self._pauses = 0
        self._longest = self._longest_before = 0.0
        self._watched = threading.get_ident()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)

    def __enter__(self) -> HangWatch:
        self._watched, self._since = threading.get_ident(), time.monotonic()
        if self._rule is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._rule is not None:
            self._thread.join(_LONGEST_LOOK_S)

    def beat(self, step: int) -> None:
        """A step has ended."""
        now = time.monotonic()
        with self._lock:
            # A pause that was told of is no measure of what is normal.
            if self._step is not None and not self._told:
                self._longest = max(self._longest, now - self._since)
                self._pauses += 1
                if self._pauses % _REMEMBERED == 0:
                    self._longest_before, self._longest = self._longest, 0.0
            self._step, self._since, self._told = step, now, False

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Around what may take long and is no step, as a save."""
        with self._lock:
            self._doing, self._since, self._told = what, time.monotonic(), False
        try:
            yield
        finally:
            with self._lock:
                self._doing, self._since, self._told = None, time.monotonic(), False

    def timeout_s(self) -> float:
        """How long the next step may take."""
        rule = self._rule
        if rule is None:
            return float("inf")
        if self._doing is not None or self._pauses < _MEASURED:
            return max(rule["start"], rule["seconds"])
        return max(rule["seconds"], rule["factor"] * max(self._longest, self._longest_before))

    def _watch(self) -> None:
        wait_s = 0.0
        try:
            while not self._closing.wait(wait_s):
                with self._lock:
                    timeout_s = self.timeout_s()
                    waited_s, told = time.monotonic() - self._since, self._told
                    step, doing = self._step, self._doing
                    hangs = waited_s > timeout_s and not told
                    self._told = told or hangs
                wait_s = min(_LONGEST_LOOK_S, timeout_s / _LOOKS)
                _dump_without_python(timeout_s + 2 * wait_s)
                if hangs:
                    # Python runs, and telling may take longer than that: threads that go on, as one that draws the
                    # report, cannot be looked at from outside without a crash.
                    faulthandler.cancel_dump_traceback_later()
                    self._tell(step, doing, waited_s)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _tell(self, step: int | None, doing: str | None, waited_s: float) -> None:
        rule = self._rule
        assert rule is not None
        # Whatever hangs may hang those who tell of it, too.
        teller = threading.Thread(target=self._write, args=(step, doing, waited_s), name="hang-teller", daemon=True)
        teller.start()
        teller.join(_TELL_S)
        if rule.severity == "stop":
            self._end(EXIT_WATCH_STOPPED)

    def _write(self, step: int | None, doing: str | None, waited_s: float) -> None:
        rule = self._rule
        assert rule is not None
        stacks = self._worker_stacks()
        path = None if self.folder is None else self.folder / f"hang_{step if step is not None else 'start'}.txt"
        main = WorkerStack(0, os.getpid(), _frames_of(self._watched))
        after = "before the first step ended" if step is None else f"after step {step}"
        message = f"no step has ended for {waited_s:.0f} s, {after}" + (f", during {doing}" if doing else "")
        if main.place is not None:
            message += f"; the training thread is at {main.place}"
        reading = next((stack for stack in stacks if stack.reads and stack.place is not None), None)
        if reading is not None:
            message += f"; worker {reading.number} is at {reading.place}. {causes(stacks).rstrip('.')}"
        if path is not None:
            message += f"; all stacks are in {path.name}"
        measured = {
            "waited_s": waited_s,
            "longest_pause_s": max(self._longest, self._longest_before),
            "workers": len(stacks),
            "during": doing,
        }
        text = "\n".join(
            [message, "", "This process:", _all_threads(), "Its loader's workers:"]
            + [stack.text or "\n".join(stack.lines()) for stack in stacks]
        )
        self._on_alert(alert_of(rule, step, None, message, **measured))
        try:
            if path is None:
                logger.warning("%s", text)
            else:
                path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            logger.warning("%s cannot be written (%s): %s", path, error.strerror or error, text)


def _frames_of(thread: int) -> tuple[Frame, ...]:
    """Where a thread of this process is, the innermost first."""
    frame, found = sys._current_frames().get(thread), []
    while frame is not None:
        found.append(Frame(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(found)


def _all_threads() -> str:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _dump_without_python(after_s: float) -> None:
    """Asks for all stacks on stderr, unless this is called again in time."""
    # Where stderr is no file, as in a notebook, there is nowhere to write to without Python.
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
        faulthandler.dump_traceback_later(after_s, file=sys.__stderr__)  # type: ignore[arg-type]
