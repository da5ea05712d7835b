"""The tables of a run's page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from preflight.report.plain import spell
from preflight.report.run_html import esc, section, table, tag
from preflight.report.run_numbers import count, figure, percent, size

_OUTCOMES = {
    "met": ("good", "met"),
    "not-met": ("bad", "not met"),
    "not-applicable": ("quiet", "not applicable"),
    "not-known": ("open", "not known"),
}
_PHASES = {
    "immediate": "At once (first 100 steps)",
    "medium-term": "In the medium term (after 1000 steps)",
    "long-term": "In the long term (the whole run)",
}
_JUDGEMENTS = {
    "held": ("good", "held"),
    "above": ("bad", "above"),
    "below": ("bad", "below"),
    "no-forecast": ("open", "no forecast"),
    "not-observed": ("open", "not observed"),
    "not-comparable": ("open", "not comparable"),
    "not-applicable": ("quiet", "not applicable"),
}
_SEVERITIES = {"stop": ("bad", "stop"), "warn": ("warn", "warning"), "note": ("open", "note")}
_STATUSES = {
    "pass": ("good", "pass"),
    "warn": ("warn", "warning"),
    "fail": ("bad", "fail"),
    "skip": ("quiet", "skipped"),
    "error": ("bad", "error"),
}
_VERDICTS = {"cleared": "cleared", "cleared-with-warnings": "cleared with warnings", "not-cleared": "not cleared"}


def criteria(found: Sequence[Mapping[str, Any]]) -> str:
    """The success criteria, a table a phase."""
    parts = []
    for phase, rows in itertools.groupby(found, key=lambda one: one["phase"]):
        cells = [(esc(row["text"]), _pill(_OUTCOMES[row["outcome"]]), esc(row["seen"])) for row in rows]
        parts.append(tag("h3", esc(_PHASES[phase])) + table(("Criterion", "Outcome", "Seen"), cells, "stacked"))
    return "".join(parts)


def forecast(found: Sequence[Mapping[str, Any]]) -> str:
    """Forecast, observation and their ratio."""
    rows = []
    for row in found:
        source = tag("small", f"{esc(row['forecast_source'])}<br>{esc(row['observed_source'])}")
        ratio = "–" if row["ratio"] is None else f"{figure(row['ratio'])} ×"
        rows.append(
            (
                esc(row["name"]) + source,
                esc(_foretold(row)),
                "–" if row["observed"] is None else esc(_spelled(row["observed"], row["unit"])),
                esc(ratio),
                _pill(_JUDGEMENTS[row["judgement"]]),
            )
        )
    return table(("", "Forecast", "Observed", "Ratio", ""), rows, "numbers")


def alerts(found: Sequence[Mapping[str, Any]]) -> str:
    """What the watch said, in its order."""
    rows = []
    for alert in found:
        window = alert["window"]
        where = "" if alert["step"] is None else f"step {count(alert['step'])}"
        if window and window[0] != window[1]:
            where += f", from steps {count(window[0])} to {count(window[1])}"
        said = tag("p", esc(alert["message"])) + (tag("p", esc(alert["advice"]), "advice") if alert["advice"] else "")
        head = tag("div", _pill(_SEVERITIES[alert["severity"]]) + tag("code", esc(alert["rule"])), "rule")
        rows.append(tag("li", tag("div", head + tag("span", esc(where), "where"), "head") + said))
    return tag("ol", "".join(rows), "alerts") if rows else ""


def checklist(clearance: Mapping[str, Any] | None) -> str:
    """The checklist with its outcomes, folded up."""
    if clearance is None:
        return section("Checklist", tag("p", "No checklist was kept with this run.", "none"))
    counts = clearance["counts"]
    words = {"pass": "passed", "warn": "warned", "fail": "failed", "skip": "skipped", "error": "broke"}
    tally = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status])
    verdict = _VERDICTS.get(clearance["verdict"], clearance["verdict"] or "no verdict")
    at = f" at level {clearance['level']}" if clearance["level"] else ""
    target = f" for {clearance['target']}" if clearance["target"] else ""
    rows = [(tag("code", esc(one["id"])), _pill(_STATUSES[one["status"]]), _said(one)) for one in clearance["checks"]]
    inner = table(("Check", "Outcome", "Said"), rows, "stacked")
    summary = tag("summary", f"{tag('b', esc(verdict))}{esc(at)}{esc(target)}: {esc(tally or 'no checks')}")
    return section("Checklist", tag("details", summary + inner), id_="checklist")


def settings(document: Mapping[str, Any]) -> str:
    """Hashes, environment and every setting, folded up."""
    parts = ""
    for title, key in (("Hashes", "hashes"), ("Environment", "environment"), ("Settings", "settings")):
        if found := document[key]:
            rows = [(tag("code", esc(name)), tag("code", esc(spell(value)))) for name, value in _flat(found).items()]
            inner = table(("Name", "Value"), rows, "pairs")
            parts += tag("details", tag("summary", tag("b", esc(title)) + f" {esc(f'{len(rows)} values')}") + inner)
    return section("What it was made with", parts, id_="settings")


def _said(check: Mapping[str, Any]) -> str:
    parts = esc(check["summary"])
    if check["ignored"]:
        parts += tag("p", f"kept out of the verdict: {esc(check['ignored'])}", "advice")
    if check["status"] in ("warn", "fail", "error"):
        parts += tag("p", esc(check["hint"]), "advice") if check["hint"] else ""
        parts += "".join(tag("pre", esc(f"$ {command}")) for command in check["commands"])
    return parts


def _foretold(row: Mapping[str, Any]) -> str:
    if row["forecast"] is None:
        return "–"
    low, high = (_spelled(value, row["unit"]) for value in row["forecast"])
    if row["kind"] == "at-most":
        return f"at most {high}"
    return low if low == high else f"{low} to {high}"


def _spelled(value: float, unit: str) -> str:
    return percent(value) if unit == "share" else size(value) if unit == "bytes" else figure(value)


def _flat(found: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _pill(tone_and_word: tuple[str, str]) -> str:
    tone, word = tone_and_word
    return f'<span class="pill {tone}">{esc(word)}</span>'
