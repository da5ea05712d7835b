"""The page of a run: one file that asks nothing of a network and runs no script."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from preflight.report.run_charts import Chart, hardware_charts, metric_charts
from preflight.report.run_document import utc
from preflight.report.run_html import esc, section, table, tag
from preflight.report.run_numbers import THIN, count, duration, figure, percent, size
from preflight.report.run_page_tables import alerts, checklist, criteria, forecast, settings
from preflight.report.run_pictures import Picture

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_CLOCKS = {
    "start_s": "opening data and model",
    "compile_s": "compile",
    "step_s": "steps",
    "data_wait_s": "waiting for data",
    "host_s": "work on the host",
    "checkpoint_s": "checkpoints",
}
_OUTCOMES = {"met": "met", "not-met": "not met", "not-known": "not known", "not-applicable": "not applicable"}


def render_page(document: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The whole page.

    Args:
        document: Of `run_document`.
        pictures: Of `load_pictures`.
    """
    from importlib.resources import files

    style = files("preflight.report").joinpath("run_page.css").read_text(encoding="utf-8")
    title = f"{document['run']['name']}: run report"
    charts, unit = hardware_charts(document["over_time"])
    body = "".join(
        (
            _header(document),
            _key_figures(document),
            _clocks(document["figures"]["clocks"], len(document["starts"])),
            _notes(document),
            section("Alerts", alerts(document["alerts"]), id_="alerts"),
            section("Success criteria", criteria(document["criteria"]), id_="criteria"),
            section(
                "Forecast and observed",
                forecast(document["forecast"]),
                "What the checklist foretold, against what the run did. A forecast holds if it is off by no more than "
                f"10{THIN}%, shares of time by no more than 5 points more.",
                id_="forecast",
            ),
            _starts(document["starts"]),
            section(
                "Metrics",
                _grid(metric_charts(document["metrics"], document["alerts"])),
                "Horizontal axis: step. Pale areas reach from the least to the greatest value, crosses mark what is no "
                "finite number, upright lines are alerts, dashed lines the usual limits.",
                id_="metrics",
            ),
            section(
                "Machine",
                _grid(charts) + _throttled(document["over_time"]["throttled"]),
                f"Horizontal axis: {unit} of running; pauses between a stop and a resume are left out and dotted.",
                id_="machine",
            )
            if charts
            else section("Machine", tag("p", "No telemetry was kept.", "none")),
            _camera_views(document, pictures),
            checklist(document["clearance"]),
            settings(document),
            _footer(document),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{esc(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<title>{esc(title)}</title>\n<style>\n{style}</style>\n</head>\n'
        f"<body>\n<main>{body}\n</main>\n</body>\n</html>\n"
    )


def _header(document: Mapping[str, Any]) -> str:
    run, verdict = document["run"], document["verdict"]
    began = utc(document["over_time"]["began"])
    about = [
        run["config"],
        run["stack"] and f"{run['stack']} stack",
        began and f"started {began}",
        run["wandb_id"] and f"wandb {run['wandb_id']}",
    ]
    outcomes = [found["outcome"] for found in document["criteria"]]
    tally = [f"{outcomes.count(o)} {word}" for o, word in _OUTCOMES.items() if o in outcomes]
    severities = [alert["severity"] for alert in document["alerts"]]
    grave = len(severities) - severities.count("note")
    seen = f"Of {len(outcomes)} success criteria: {', '.join(tally)}. " + (
        f"{len(severities)} alert{'s' if len(severities) > 1 else ''}, {grave} of them more than a note."
        if severities
        else "No alerts were recorded."
    )
    head = (
        tag("p", "preflight run report", "kicker")
        + tag("h1", esc(run["name"]))
        + tag("p", " <span aria-hidden='true'>·</span> ".join(tag("span", esc(one)) for one in about if one), "about")
    )
    said = tag("p", esc(verdict["sentence"]), "sentence") + tag("p", esc(seen), "tally")
    return "\n" + tag("header", head + tag("div", said, f"verdict {verdict['state']}"))


def _key_figures(document: Mapping[str, Any]) -> str:
    found, verdict = document["figures"], document["verdict"]
    rows: list[tuple[str, str, str]] = []
    if found["steps"] is not None:
        of = f"of {count(verdict['planned_steps'])}" if verdict["planned_steps"] else ""
        rows.append(("Steps", count(found["steps"]), of))
    # The summary is the last start's alone.
    resumed = len(document["starts"]) > 1
    seconds = document["over_time"]["seconds"] if resumed or found["seconds"] is None else found["seconds"]
    if seconds:
        rows.append(("Time of running", duration(seconds), f"in {len(document['starts'])} starts" if resumed else ""))
    if found["steps_per_sec"] is not None:
        samples = found["samples_per_sec"]
        under = "" if samples is None else f"{figure(samples)} samples/s"
        rows.append(("Steps per second", figure(found["steps_per_sec"]), under))
    if found["last_loss"] is not None:
        last = figure(found["last_loss"] if isinstance(found["last_loss"], float) else float(found["last_loss"]))
        best = "" if found["best_loss"] is None else f"best {figure(found['best_loss'])}"
        rows.append(("Last loss", last, best))
    if found["goodput"] is not None:
        rows.append(("Goodput", percent(found["goodput"]), "of the time in steps"))
    if found["data_wait_share"] is not None:
        rows.append(("Waiting for data", percent(found["data_wait_share"]), "of the steps' time"))
    if saved := document["checkpoints"]:
        rows.append(
            ("Checkpoints", count(len(saved)), f"newest: step {count(saved[-1]['step'])}, {size(saved[-1]['bytes'])}")
        )
    tiles = "".join(
        tag("div", tag("dt", esc(name)) + tag("dd", esc(value) + (tag("small", esc(under)) if under else "")))
        for name, value, under in rows
    )
    return tag("dl", tiles, "figures") if rows else ""


def _clocks(clocks: Mapping[str, float], starts: int) -> str:
    total = sum(clocks.values())
    if not total:
        return ""
    there = [name for name in _CLOCKS if clocks.get(name)]
    parts = "".join(
        f'<span class="clock {esc(name)}" style="flex-grow: {clocks[name] / total:.4f}"></span>' for name in there
    )
    legend = "".join(
        tag("li", f'<i class="clock {name}"></i>{esc(_CLOCKS[name])} ' + tag("b", esc(_spent(clocks[name], total))))
        for name in there
    )
    return section(
        f"Where the time{' of the last start' if starts > 1 else ''} went",
        tag("div", parts, "clocks", aria_hidden="true") + tag("ul", legend, "legend wide"),
    )


def _spent(seconds: float, total: float) -> str:
    return f"{percent(seconds / total)}, {duration(seconds)}"


def _notes(document: Mapping[str, Any]) -> str:
    rows = "".join(tag("li", tag("code", esc(note["file"])) + " " + esc(note["text"])) for note in document["notes"])
    return section("What this report could not see", tag("ul", rows, "notes")) if rows else ""


def _starts(starts: Sequence[Mapping[str, Any]]) -> str:
    if len(starts) < 2:
        return ""
    rows = [
        (
            esc(number),
            esc(count(start["step"])),
            esc(utc(start["time"]) or "not known"),
            "" if start["pause_s"] is None or number == 1 else esc(duration(max(0.0, start["pause_s"]))),
        )
        for number, start in enumerate(starts, start=1)
    ]
    lead = "The run was resumed; a step that an earlier start made beyond its checkpoint was made again."
    heads = ("Start", "First logged step", "At", "After the record before")
    return section("Starts", table(heads, rows, "narrow"), lead, id_="starts")


def _grid(charts: Sequence[Chart]) -> str:
    parts = []
    for group, members in itertools.groupby(charts, key=lambda chart: chart.group):
        parts.append(tag("h3", esc(group)) + tag("div", "".join(map(_figure, members)), "grid"))
    return "".join(parts)


def _figure(chart: Chart) -> str:
    head = tag("b", esc(chart.title)) + tag("span", esc(chart.facts))
    legend = "".join(
        tag("li", f'<i style="background: var(--{colour})"></i>{esc(text)}') for colour, text in chart.legend
    )
    warning = tag("p", esc(chart.warning), "alarm") if chart.warning else ""
    return tag(
        "figure",
        tag("figcaption", head) + warning + f"\n{chart.svg}\n" + (tag("ul", legend, "legend") if legend else ""),
    )


def _throttled(shares: Mapping[str, float]) -> str:
    rows = "".join(tag("li", f"{esc(name)}: {esc(percent(share))} of the samples") for name, share in shares.items())
    return tag("h3", "GPU clocks were held back") + tag("ul", rows, "notes") if rows else ""


def _camera_views(document: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    shown = "".join(
        tag(
            "figure",
            tag("figcaption", tag("b", esc(f"step {count(picture.step)}")))
            + f'<img src="{picture.uri}" width="{picture.width}" height="{picture.height}" loading="lazy" '
            f'alt="camera views of the batch of step {picture.step}, a row for each camera">',
        )
        for picture in pictures
    )
    all_ = len(document["camera_views"])
    lead = "What the model saw: the first samples of a batch side by side, a row for each camera."
    if len(pictures) < all_:
        lead += f" Shown are {len(pictures)} of {all_}."
    return section("Camera views", tag("div", shown, "views") if shown else "", lead, id_="camera-views")


def _footer(document: Mapping[str, Any]) -> str:
    made = document["made_at"].replace("T", " ").replace("Z", " UTC")
    folder = tag("code", esc(document["run"]["folder"]))
    version = esc(document["preflight_version"])
    return tag("footer", tag("p", f"Made {esc(made)} by preflight {version} from {folder}."))
