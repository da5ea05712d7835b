"""The checklist as a person reads it, printed while it runs."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from preflight.checklist.check import Check, Hint, Result
from preflight.checklist.verdict import verdict
from preflight.report.page import Page
from preflight.report.plain import spell
from preflight.report.status_line import StatusLine
from preflight.report.tally import blind, tally

# A symbol, what stands for it in ASCII, and its style.
_SYMBOLS = {
    "pass": ("✓", "+", "green"),
    "warn": ("!", "!", "yellow"),
    "fail": ("✗", "x", "bold red"),
    "skip": ("–", "-", "dim"),
    "error": ("?", "?", "bold magenta"),
}
_VERDICTS = {
    "cleared": ("CLEARED", "bold green"),
    "cleared-with-warnings": ("CLEARED WITH WARNINGS", "bold yellow"),
    "not-cleared": ("NOT CLEARED", "bold red"),
}
_INDENT = 6
_WIDEST_ID = 28  # a longer id has its summary beneath it
_NARROWEST_SUMMARY = 30  # with fewer columns left than this, all summaries go beneath their ids
_EVIDENCE_LINES = 12
_SHOWN_DURATION_S = 1.0
_PROGRESS_EVERY_S = 0.1
_BAR = 24  # columns


class TextReport:
    """An observer of `run_checks` that prints each result as it comes; `finish` prints the verdict.

    Args:
        checks: What will be run, in order; the widths of the columns come from it.
        stream: Where to print; stdout by default. `Page` says when there are colours.
        heading: A first line: what is being checked.
        required_by: For each check that was pulled in by a requirement, the ids of those that require it.
        width: Columns; by default the terminal's, at most 120, and 100 where there is none.
        colour: Whether to use colours; by default on a terminal without `NO_COLOR`.
        status_stream: Where to say what is running, if it is a terminal; stderr by default.
    """

    def __init__(
        self,
        checks: Sequence[Check[Any]],
        stream: TextIO | None = None,
        *,
        heading: str | None = None,
        required_by: Mapping[str, Sequence[str]] | None = None,
        width: int | None = None,
        colour: bool | None = None,
        status_stream: TextIO | None = None,
    ) -> None:
        self._page = Page(sys.stdout if stream is None else stream, width=width, colour=colour)
        self._status = StatusLine(sys.stderr if status_stream is None else status_stream)
        self._heading = heading
        self._required_by = required_by or {}
        self._id_width = max((len(check.id) for check in checks if len(check.id) <= _WIDEST_ID), default=0)
        self._category: str | None = None
        self._running: str | None = None
        self._results: list[Result] = []
        self._progress_shown = 0.0

    def on_start(self, check: Check[Any]) -> None:
        """Show on the status line that it is running."""
        self._print_heading()
        self._running = check.id
        self._status.show(f"running {check.id} ...")

    def progress(self, what: str, done: int, total: int) -> None:
        """Show on the status line how far a check is; from any thread, as often as it likes.

        Args:
            what: What it goes through, as in "videos".
            done: How many it has been through.
            total: Of how many.
        """
        now = time.monotonic()
        if now - self._progress_shown < _PROGRESS_EVERY_S and done < total:
            return
        self._progress_shown = now
        filled = round(_BAR * done / max(total, 1))
        bar = "#" * filled + "-" * (_BAR - filled)
        self._status.show(f"{what} [{bar}] {done:,} of {total:,}")

    def on_result(self, result: Result) -> None:
        """Print the result, under the heading of its category."""
        self._print_heading()
        self._results.append(result)
        if result.check.id == self._running:
            self._status.clear()
        with self._status.hidden():
            if result.check.category != self._category:
                self._category = result.check.category
                self._page.line("")
                self._page.line(self._category, "bold")
            self._print_summary(result)
            if result.status != "pass":
                self._print_details(result)
            self._page.flush()

    def finish(self, *, duration_s: float | None = None) -> None:
        """Print how many checks came out how, and the verdict.

        Args:
            duration_s: Seconds that the whole list took; left out of the text when None.
        """
        self._print_heading()
        self._status.clear()
        page, n = self._page, len(self._results)
        took = "" if duration_s is None else f" in {_duration(duration_s)}"
        counts = tally(result.status for result in self._results) or "there was nothing to run"
        page.line("")
        page.wrapped(page.text(""), page.text(f"Ran {n} check{'' if n == 1 else 's'}{took}: {counts}", "bold"))
        page.rows(self._footnotes())
        page.line("")
        self._print_verdict()
        page.flush()

    def _print_heading(self) -> None:
        if self._heading is not None:
            self._page.line(self._heading, "bold")
            self._page.flush()
            self._heading = None

    def _print_summary(self, result: Result) -> None:
        page, status, id_ = self._page, result.status, result.check.id
        symbol, ascii_symbol, style = _SYMBOLS[status]
        mark = page.text("  ") + page.text(page.encodable(symbol, ascii_symbol), style) + page.text(" ")
        mark += page.text(id_, "bold" if status in ("fail", "error") else "")
        summary = page.text("") + page.text(result.outcome.summary, "dim" if status == "skip" else "")
        if result.ignored is not None:
            summary += page.text(f" (ignored: {result.ignored})", "italic")
        if result.duration_s >= _SHOWN_DURATION_S:
            summary += page.text(f" ({_duration(result.duration_s)})", "dim")

        column = 4 + self._id_width + 2
        if len(id_) > self._id_width or page.width - column < _NARROWEST_SUMMARY:
            page.line(mark)
            page.wrapped(page.text(" " * _INDENT), summary)
        else:
            page.wrapped(mark + page.text(" " * (column - mark.cell_len)), summary)

    def _print_details(self, result: Result) -> None:
        page, outcome = self._page, result.outcome
        self._print_values("measured", outcome.measured)
        self._print_values("expected", outcome.expected)
        bar = page.text(" " * _INDENT + page.encodable("│ ", "| "), "dim")
        lines = [line for entry in outcome.evidence for line in entry.splitlines() or [""]]
        for line in lines[:_EVIDENCE_LINES]:
            page.wrapped(bar, page.text(line.expandtabs(4), "dim"), repeat=True)
        if (more := len(lines) - _EVIDENCE_LINES) > 0:
            page.wrapped(bar, page.text(f"and {more} more line{'' if more == 1 else 's'}: see --format json", "dim"))
        if outcome.hint is not None:
            self._print_hint(outcome.hint)

    def _print_values(self, label: str, values: Mapping[str, Any]) -> None:
        """All on one line where they fit, else one a line."""
        page, prefix = self._page, self._page.text(f"{' ' * _INDENT}{label}  ", "dim")
        line = page.text(spell(values))
        if values and prefix.cell_len + line.cell_len <= page.width:
            page.wrapped(prefix, line)
            return
        for name, value in values.items():
            page.wrapped(prefix, page.text(spell({name: value})))
            prefix = page.text(" " * prefix.cell_len)

    def _print_hint(self, hint: Hint) -> None:
        page = self._page
        page.wrapped(page.text(" " * _INDENT + page.encodable("→ ", "> "), "cyan"), page.text(hint.text))
        self._print_commands(hint, _INDENT + 2)
        if hint.url is not None:
            page.line(page.text(" " * (_INDENT + 2)) + page.text(hint.url, "underline"))

    def _print_commands(self, hint: Hint, indent: int) -> None:
        """Never wrapped: a command broken over two lines cannot be copied."""
        page = self._page
        for command in hint.commands:
            for i, line in enumerate(command.splitlines()):
                page.line(page.text(f"{' ' * indent}{'>' if i else '$'} ", "dim") + page.text(line, "cyan"))

    def _footnotes(self) -> list[tuple[str, str]]:
        skipped: dict[str, list[str]] = {}
        for result in self._results:
            if result.status == "skip":
                skipped.setdefault(result.outcome.summary, []).append(result.check.id)
        rows = [("skipped", f"{', '.join(ids)}: {reason}") for reason, ids in skipped.items()]
        for result in self._results:
            if result.ignored is not None:
                came_out = "passes now, so the ignore can go" if result.status == "pass" else result.status
                rows.append(("ignored", f"{result.check.id} ({came_out}): {result.ignored}"))
        return rows + [("added", f"{id_}: required by {', '.join(by)}") for id_, by in self._required_by.items()]

    def _print_verdict(self) -> None:
        page = self._page
        word, style = _VERDICTS[verdict(self._results)]
        line = page.text("Verdict: ", "bold") + page.text(word, style)
        if blind([result.status for result in self._results]):
            line += page.text(", but every check was skipped: nothing was looked at")
        page.wrapped(page.text(""), line)

        counted = [result for result in self._results if result.counts]
        faults = [r for r in counted if r.status == "fail"] + [r for r in counted if r.status == "error"]
        label, pressing = "mend first", faults
        if not faults:
            label, pressing = "worth a look", [r for r in counted if r.status == "warn"]
        if not pressing:
            return
        # A check comes after those that it requires, so the first is the one nearest to the root.
        first, *rest = pressing
        page.rows([(label, f"{first.check.id}: {first.outcome.summary}")])
        if first.outcome.hint is not None:
            self._print_commands(first.outcome.hint, 2 + len(label) + 2)
        if rest:
            page.rows([("then".ljust(len(label)), ", ".join(result.check.id for result in rest))])


def _duration(seconds: float) -> str:
    if seconds < 59.95:  # what rounds to 60.0 s is a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
