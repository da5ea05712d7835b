"""What a check is, and what it answers: plain frozen data that the runner, the docs and every report read alike."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar, Unpack, get_args

Status = Literal["pass", "warn", "fail", "skip", "error"]
Level = Literal["quick", "standard", "full"]
Severity = Literal["fail", "warn"]

STATUSES: tuple[Status, ...] = get_args(Status)
LEVELS: tuple[Level, ...] = get_args(Level)  # in rising order: a run at one level includes the levels before it
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

ContextT = TypeVar("ContextT")

_WORDS = r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*"
_ID = re.compile(rf"{_WORDS}\.{_WORDS}")


@dataclass(frozen=True, kw_only=True)
class Hint:
    """What mends a miss.

    Attributes:
        text: One or two sentences.
        commands: Shell commands, each copyable as it stands.
        url: Where to read more.
    """

    text: str
    commands: tuple[str, ...] = ()
    url: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "commands", _lines("commands", self.commands))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a check saw.

    Attributes:
        status: "pass" and "warn" and "fail" are answers; "skip" says that the question does not arise, "error" that the
            check itself broke and the question is open.
        summary: One line. A pass says what it covered.
        measured: What was seen, by name, with the unit in the name (`free_gib`).
        expected: What should have been seen, by the same names.
        evidence: Lines to show beneath the summary.
        hint: What to do about it.

    Raises:
        ValueError: The status is not one of `STATUSES`.
        TypeError: A field has the wrong type; a lone string as `evidence`, for instance, is one line and not a tuple.
    """

    status: Status
    summary: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, Any] = field(default_factory=dict)
    evidence: tuple[str, ...] = ()
    hint: Hint | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"unknown status {self.status!r}; the statuses are {', '.join(STATUSES)}")
        if not isinstance(self.summary, str):
            raise TypeError(f"summary must be a str, not {type(self.summary).__name__}")
        for name in ("measured", "expected"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} must be a mapping from names to values")
        object.__setattr__(self, "evidence", _lines("evidence", self.evidence))
        if not (self.hint is None or isinstance(self.hint, Hint)):
            raise TypeError(f"hint must be a Hint, not {type(self.hint).__name__}")


class Details(TypedDict, total=False):
    """The optional fields of an `Outcome`, for its constructors."""

    measured: Mapping[str, Any]
    expected: Mapping[str, Any]
    evidence: Sequence[str]
    hint: Hint | None


def passed(summary: str, **details: Unpack[Details]) -> Outcome:
    """All is well; the summary says what was covered ("8 of 8 videos opened")."""
    return _outcome("pass", summary, details)


def warned(summary: str, **details: Unpack[Details]) -> Outcome:
    """The run will work, but something is untuned."""
    return _outcome("warn", summary, details)


def failed(summary: str, **details: Unpack[Details]) -> Outcome:
    """The run would break or go wrong. From a check of severity "warn" too: the runner turns it into a warn."""
    return _outcome("fail", summary, details)


def skipped(summary: str, **details: Unpack[Details]) -> Outcome:
    """The check's subject does not exist; the summary says why."""
    return _outcome("skip", summary, details)


def errored(summary: str, **details: Unpack[Details]) -> Outcome:
    """The check itself broke. The runner makes these; a check raises instead."""
    return _outcome("error", summary, details)


@dataclass(frozen=True, kw_only=True)
class Check(Generic[ContextT]):
    """One question about a training run, as data.

    Attributes:
        id: `category.name`, lowercase words joined by dashes (`grad.has-aux`). Stable: scripts and ignores name it.
        title: What it makes sure of, in a few words.
        level: The lowest level of a checklist run that includes it.
        severity: What a miss amounts to: "fail" (defective) or "warn" (merely untuned).
        requires: Ids of the checks without whose success this one has nothing to look at.
        timeout_s: Seconds after which the runner gives up on it.
        exclusive: It measures, so nothing else may run beside it.
        failures: Ids of the known failures that it would have caught.
        run: The check itself: takes the context, returns an `Outcome` or raises.
        doc: A longer explanation: what it looks at, why, and how each figure is got.

    Raises:
        ValueError: The id, level, severity or time limit is not a valid one.
    """

    id: str
    title: str
    level: Level
    severity: Severity = "fail"
    requires: tuple[str, ...] = ()
    timeout_s: float = 60.0
    exclusive: bool = False
    failures: tuple[str, ...] = ()
    run: Callable[[ContextT], Outcome]
    doc: str = ""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(
                f"check id {self.id!r} is not of the form category.name, in lowercase words joined by dashes"
            )
        if self.level not in LEVELS:
            raise ValueError(f"{self.id}: unknown level {self.level!r}; the levels are {', '.join(LEVELS)}")
        if self.severity not in SEVERITIES:
            raise ValueError(f"{self.id}: unknown severity {self.severity!r}; it is one of {', '.join(SEVERITIES)}")
        if not self.timeout_s > 0:
            raise ValueError(f"{self.id}: timeout_s is {self.timeout_s}; it must be above zero")
        for name in ("requires", "failures"):
            object.__setattr__(self, name, _lines(name, getattr(self, name)))

    @property
    def category(self) -> str:
        """The part of the id before the dot."""
        return self.id.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A check and how it came out, as observers and reports get it.

    Attributes:
        check: The check.
        outcome: What it saw, after the runner applied the check's severity.
        duration_s: Seconds that it ran; 0 where it did not.
        ignored: The user's reason for leaving it out of the verdict, or None.
        abandoned: It ran into its time limit and its thread may still be running; a process that holds such a thread
            should end with `os._exit`, since Python's orderly exit could wait for it or crash in it.
    """

    check: Check[Any]
    outcome: Outcome
    duration_s: float
    ignored: str | None = None
    abandoned: bool = False

    @property
    def status(self) -> Status:
        """The outcome's status."""
        return self.outcome.status

    @property
    def counts(self) -> bool:
        """Whether it has a say in the verdict: the user did not ask to ignore it."""
        return self.ignored is None


def _outcome(status: Status, summary: str, details: Details) -> Outcome:
    # Outcome turns a list of evidence lines into a tuple, which its field's type cannot say.
    return Outcome(status=status, summary=summary, **details)  # type: ignore[arg-type]


def _lines(name: str, value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(line, str) for line in value):
        raise TypeError(f"{name} must be a tuple of str, not {value!r}")
    return tuple(value)
