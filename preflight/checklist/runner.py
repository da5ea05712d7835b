"""Runs a list of checks: cheap ones side by side, exclusive ones alone, each shielded from the others' crashes."""

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Protocol, runtime_checkable

from preflight.checklist.check import Check, Hint, Outcome, Result, errored, failed, skipped
from preflight.checklist.requirements import validate_requirements
from preflight.errors import NotCovered, PreflightError

# A check that requires one with such an outcome has nothing to look at. A warn (works, but untuned) blocks nothing.
_BLOCKING = ("fail", "error", "skip")
# The innermost frames and first message lines that go into the evidence of an error.
_FRAMES = 3
_MESSAGE_LINES = 4


@runtime_checkable
class Observer(Protocol):
    """Follows a run. Both methods are called from the thread that called `run_checks`."""

    def on_start(self, check: Check[Any]) -> None:
        """The check begins to run; several may be running. Not called for a check that is not run."""

    def on_result(self, result: Result) -> None:
        """The next result, in the order of the list."""


@dataclass(frozen=True, kw_only=True)
class _Flight:
    check: Check[Any]
    thread: threading.Thread
    started: float  # by the caller's clock
    deadline: float  # by time.monotonic
    beside: tuple[str, ...]  # abandoned checks that were still running when it began


@dataclass(frozen=True, kw_only=True)
class _Arrival:
    id: str
    outcome: Outcome
    duration_s: float


def run_checks(
    checks: Sequence[Check[Any]],
    context: Any,
    *,
    ignores: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
    observers: Iterable[Observer] = (),
    max_parallel: int = 4,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Result]:
    """Run the checks and return one result for each, in their order.

    Whatever is not exclusive and has its requirements settled runs first, up to `max_parallel` at a time; when nothing
    of that kind is left, the next exclusive check runs alone. Every check has a daemon thread of its own, so that a
    time-out can abandon it and Ctrl-C is obeyed at once: a `KeyboardInterrupt` leaves this function while checks may
    still be running, and the process should then end with `os._exit`. The same holds where a result is `abandoned`.

    Args:
        checks: With everything that they require; see `select`.
        context: Handed to every check.
        ignores: Reason by check id: run and shown, but without a say in the verdict.
        left_out: Reason by check id: reported as a skip, not run; what requires it runs all the same.
        observers: Told of each start at once, and of the results in the order of the list.
        max_parallel: How many cheap checks may run at once.
        clock: Seconds, for the durations reported. Time limits go by `time.monotonic`.

    Raises:
        UsageError: Two checks share an id, a requirement is missing, or requirements form a circle.
        ValueError: `max_parallel` is below 1.
    """
    if max_parallel < 1:
        raise ValueError(f"max_parallel is {max_parallel}; at least one check must be able to run")
    validate_requirements(checks)
    ignores, left_out, observers = ignores or {}, left_out or {}, tuple(observers)
    waiting = list(checks)
    running: dict[str, _Flight] = {}
    results: dict[str, Result] = {}
    blockers: dict[str, tuple[str, ...]] = {}  # by the id of a check that was blocked, what is at the root of it
    abandoned: list[_Flight] = []
    arrivals: SimpleQueue[_Arrival] = SimpleQueue()
    delivered = 0

    def settle(check: Check[Any], outcome: Outcome, duration_s: float = 0.0, *, abandoned: bool = False) -> None:
        nonlocal delivered
        if outcome.status == "fail" and check.severity == "warn":
            outcome = replace(outcome, status="warn")
        reason = ignores.get(check.id)
        results[check.id] = Result(
            check=check, outcome=outcome, duration_s=duration_s, ignored=reason, abandoned=abandoned
        )
        while delivered < len(checks) and checks[delivered].id in results:
            for observer in observers:
                observer.on_result(results[checks[delivered].id])
            delivered += 1

    def begin(check: Check[Any]) -> None:
        waiting.remove(check)
        if check.id in left_out:
            settle(check, skipped(left_out[check.id]))
        elif roots := _roots(check, results, blockers, left_out):
            blockers[check.id] = roots
            settle(check, skipped(f"blocked by {', '.join(roots)}"))
        else:
            beside = tuple(flight.check.id for flight in abandoned if flight.thread.is_alive())
            for observer in observers:
                observer.on_start(check)
            running[check.id] = _launch(check, context, arrivals, clock, beside)

    while len(results) < len(checks):
        if (check := _next_to_begin(waiting, running, results, max_parallel)) is not None:
            begin(check)
            continue
        arrival = _await_arrival(arrivals, running)
        if arrival is None:
            for flight in _overdue(running):
                del running[flight.check.id]
                abandoned.append(flight)
                settle(flight.check, _timed_out(flight), clock() - flight.started, abandoned=True)
        elif (landed := running.pop(arrival.id, None)) is not None:
            settle(landed.check, _with_company(arrival.outcome, landed), arrival.duration_s)
        # else: it was given up on and its result comes too late; the time-out has been reported and stands.
    return [results[check.id] for check in checks]


def _next_to_begin(
    waiting: Sequence[Check[Any]], running: Mapping[str, _Flight], settled: Mapping[str, Result], max_parallel: int
) -> Check[Any] | None:
    if len(running) >= max_parallel or any(flight.check.exclusive for flight in running.values()):
        return None
    ready = [check for check in waiting if all(required in settled for required in check.requires)]
    cheap = next((check for check in ready if not check.exclusive), None)
    if cheap is not None or running:
        return cheap
    return ready[0]  # requirements form no circle, so with nothing running something is always ready


def _roots(
    check: Check[Any],
    results: Mapping[str, Result],
    blockers: Mapping[str, tuple[str, ...]],
    left_out: Mapping[str, str],
) -> tuple[str, ...]:
    """What keeps the check from having a subject, traced back through checks that were blocked themselves."""
    roots: dict[str, None] = {}
    for required in check.requires:
        if required not in left_out and results[required].status in _BLOCKING:
            roots.update(dict.fromkeys(blockers.get(required, (required,))))
    return tuple(roots)


def _launch(
    check: Check[Any],
    context: Any,
    arrivals: "SimpleQueue[_Arrival]",
    clock: Callable[[], float],
    beside: tuple[str, ...],
) -> _Flight:
    started = clock()

    def fly() -> None:
        outcome = _attempt(check, context)
        arrivals.put(_Arrival(id=check.id, outcome=outcome, duration_s=clock() - started))

    thread = threading.Thread(target=fly, name=f"check {check.id}", daemon=True)
    deadline = time.monotonic() + check.timeout_s
    thread.start()
    return _Flight(check=check, thread=thread, started=started, deadline=deadline, beside=beside)


def _attempt(check: Check[Any], context: Any) -> Outcome:
    try:
        outcome = check.run(context)
    except NotCovered as error:
        return skipped(error.message)
    except PreflightError as error:
        return failed(error.message, hint=Hint(text=error.hint) if error.hint else None)
    except BaseException as error:  # noqa: BLE001  (a check that calls sys.exit must not take the list down with it)
        return _crashed(error)
    if not isinstance(outcome, Outcome):
        return errored(f"the check broke: it returned {type(outcome).__name__}, not an Outcome")
    return outcome


def _await_arrival(arrivals: "SimpleQueue[_Arrival]", running: Mapping[str, _Flight]) -> _Arrival | None:
    """The next arrival, or None when a deadline passed first."""
    patience = min(flight.deadline for flight in running.values()) - time.monotonic()
    try:
        return arrivals.get(timeout=min(max(patience, 0.0), threading.TIMEOUT_MAX))
    except Empty:
        return None


def _overdue(running: Mapping[str, _Flight]) -> list[_Flight]:
    now = time.monotonic()
    return [flight for flight in running.values() if flight.deadline <= now]


def _timed_out(flight: _Flight) -> Outcome:
    frame = sys._current_frames().get(flight.thread.ident or -1)
    return errored(
        f"timed out after {flight.check.timeout_s:g} s; its thread is abandoned and may still be running",
        evidence=_stack(frame),
    )


def _stack(frame: FrameType | None) -> tuple[str, ...]:
    if frame is None:
        return ()
    frames = traceback.extract_stack(frame)
    own = max((i for i, summary in enumerate(frames) if summary.filename == __file__), default=-1)
    lines = "".join(traceback.format_list(frames[own + 1 :][-_FRAMES:])).splitlines()
    return ("it was here:", *lines) if lines else ()


def _crashed(error: BaseException) -> Outcome:
    # The first frame is the runner's own.
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    frames = "".join(traceback.format_list(traceback.extract_tb(trace, limit=-_FRAMES))).splitlines()
    message = "".join(traceback.format_exception_only(error)).strip().splitlines()
    # Without the module: "XlaRuntimeError: ..." reads better than its full path, which the evidence has.
    first = next((line.strip() for line in _text(error).splitlines() if line.strip()), "")
    name = type(error).__name__
    return errored(
        f"the check broke: {name}: {first}" if first else f"the check broke: {name}",
        evidence=(*frames, *message[:_MESSAGE_LINES]),
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (an exception whose __str__ is broken is still only a crash of its check)
        return "(its message cannot be printed)"


def _with_company(outcome: Outcome, flight: _Flight) -> Outcome:
    """Say so when an exclusive check did not have the machine for itself."""
    if not (flight.check.exclusive and flight.beside):
        return outcome
    note = f"not alone on the machine: {', '.join(flight.beside)} timed out and may still have been running"
    return replace(outcome, evidence=(*outcome.evidence, note))
