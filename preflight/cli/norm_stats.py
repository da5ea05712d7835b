"""`preflight norm-stats`: the normalisation statistics, from the parquet columns alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from preflight.cli.options import (
    ConfigArgument,
    OpenpiOption,
    SetOption,
    StackOption,
    one_of,
    open_run,
    output_file,
    output_option,
)
from preflight.cli.progress import frames_progress
from preflight.errors import DataError, UsageError

if TYPE_CHECKING:
    from preflight.data.normalised import Dimension
    from preflight.data.normalize import NormStats
    from preflight.runs import Run

SCHEMA_VERSION = 1
_SHOWN = 12  # dimensions in the table
# Where the file holds what was computed, read and written as decimal numbers.
_SAME = 1e-6


def norm_stats(
    config: ConfigArgument = None,
    write: Annotated[bool, typer.Option("--write", help="Write the file where the run looks for it.")] = False,
    stack: StackOption = "auto",
    format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="text or json.")] = "text",  # noqa: A002
    output: Annotated[
        Optional[Path],  # noqa: UP045
        output_option("Write the report there."),
    ] = None,
    openpi: OpenpiOption = None,
    set_: SetOption = [],  # noqa: B006
) -> int:
    """Compute the normalisation statistics of a run's dataset, exactly and without decoding a picture.

    Without --write nothing is written but a table of the worst dimensions. With it, a file that is there already is
    kept beside the new one as norm_stats.json.bak.
    """
    one_of("--format", format, ("text", "json"))
    run, _ = open_run(config, stack, set_, openpi)
    with output_file(output) as file:
        report = _report(run, write=write)
        text = json.dumps(report, indent=2) + "\n" if format == "json" else _render(report)
        (file or sys.stdout).write(text)
    return 0


def _report(run: Run, *, write: bool) -> dict[str, Any]:
    from preflight import __version__
    from preflight.data.metadata import read_info
    from preflight.data.normalised import described, dimension_labels
    from preflight.data.normalize import stats_to_json
    from preflight.data.streamed_stats import exact_stats

    root = run.source()
    if root is None:
        raise UsageError(f"{run.facts.name} makes its samples up without a dataset: there is nothing to compute")
    place = run.statistics(read=False)
    if write and place.fetched:
        raise UsageError(
            f"{run.facts.name} takes its statistics from elsewhere; {place.path} is the copy that is kept of them",
            "name a place of your own, as with --set data.assets.assets_dir=none --set data.assets.asset_id=NAME",
        )
    path = place.path or Path("assets") / run.facts.name / _asset_id(run, root) / "norm_stats.json"
    with frames_progress() as progress:
        stats, summaries = exact_stats(run.all_before_normalisation(), progress=progress)
    info = read_info(root)
    if any(_has_nan(each) for each in stats.values()):
        raise _not_finite(run, root)
    dimensions = []
    for name, summary in summaries.items():
        labels = dimension_labels(info, run.columns(), name, len(summary.mean))
        dimensions += described(name, summary, stats[name], place.norm, labels)
    report = {
        "schema_version": SCHEMA_VERSION,
        "preflight_version": __version__,
        "config": run.facts.name,
        "stack": run.facts.stack,
        "dataset": str(root),
        "frames": info.total_frames,
        "count": {name: summary.count for name, summary in summaries.items()},
        "norm": place.norm,
        "path": str(path),
        "existing": _existing(path, stats, dimensions),
        "written": write,
        "use": None if place.path is not None else f"--set data.norm_stats={path}",
        "dimensions": [_dimension(d) for d in dimensions],
        **stats_to_json(stats),
    }
    if write:
        report["kept"] = _write(stats, path)
    return report


def _asset_id(run: Run, root: Path) -> str:
    return str(run.facts.settings.get("data.repo_id") or root.resolve().name)


def _has_nan(stats: NormStats) -> bool:
    import numpy as np

    return bool(np.isnan(stats.mean).any())


def _not_finite(run: Run, root: Path) -> DataError:
    """Names the first of the recorded values that are not finite."""
    from preflight.data.column_scan import place_of_frame, scan_columns, scanned_keys
    from preflight.data.episodes import read_episodes
    from preflight.data.metadata import read_info

    info = read_info(root)
    episodes = read_episodes(info)
    for column in scan_columns(info, episodes, scanned_keys(info, run.columns())).columns.values():
        for dim, (count, first) in column.not_finite.items():
            path, episode, frame = place_of_frame(info, episodes, first)
            return DataError(
                f"{path}: {column.labels[dim]} is NaN or inf in {count:,} frame(s), the first is frame {frame} of "
                f"episode {episode}",
                "repair or drop the episode: one NaN or inf makes the statistics and the loss NaN",
            )
    return DataError("the transforms make NaN or inf of values that are finite", "look at the data config's transforms")


def _dimension(d: Dimension) -> dict[str, Any]:
    return {
        "name": d.name,
        "index": d.index,
        "label": d.label,
        "mean": d.given_mean,
        "std": d.given_std,
        "q01": d.given_q01,
        "q99": d.given_q99,
        "min": d.low,
        "max": d.high,
        "furthest": d.furthest,
        "constant": d.constant,
    }


def _existing(path: Path, stats: Mapping[str, NormStats], dimensions: Sequence[Dimension]) -> dict[str, Any] | None:
    """How the file that is there differs, in each field by the largest difference against the dimension's spread."""
    from preflight.data.normalize import load

    if not path.exists():
        return None
    try:
        there = load(path)
    except DataError as error:
        return {"unreadable": error.message}
    labels = {(d.name, d.index): d.label for d in dimensions}
    rows = []
    for name, own in stats.items():
        if len(there[name].mean) != len(own.mean):
            return {"unreadable": f"{path} has {len(there[name].mean)} dimensions of {name}, the data {len(own.mean)}"}
        for field in ("mean", "std", "q01", "q99"):
            for index, (old, new) in enumerate(zip(getattr(there[name], field), getattr(own, field), strict=True)):
                spread = float(own.std[index]) if field in ("mean", "std") else float(own.q99[index] - own.q01[index])
                off = abs(float(old) - float(new)) / (spread + 1e-6)
                rows.append({"label": labels[name, index], "field": field, "there": old, "data": new, "off": off})
    differing = [row for row in rows if not row["off"] <= _SAME]
    worst = max(rows, key=lambda row: (row["off"] != row["off"], row["off"]))
    return {
        "differing": len({row["label"] for row in differing}),
        "worst": {key: value if key in ("label", "field") else _number(value) for key, value in worst.items()},
    }


def _number(value: float) -> float | None:
    return None if value != value else float(value)  # JSON has no NaN


def _write(stats: Mapping[str, NormStats], path: Path) -> str | None:
    """Writes the file, and gives the place of the one that was there."""
    import shutil

    from preflight.data.atomic import explain
    from preflight.data.normalize import save

    kept = path.with_name(f"{path.name}.bak") if path.exists() else None
    try:
        if kept is not None:
            shutil.copy2(path, kept)
        save(stats, path)
    except OSError as error:
        raise explain(error, path) from error
    return None if kept is None else str(kept)


def _render(report: Mapping[str, Any]) -> str:
    count, existing = report["count"], report["existing"]
    heading = (
        f"{report['config']}: all {report['frames']:,} frames of {report['dataset']}, "
        f"{count['state']:,} values of each state dimension and {count['actions']:,} of each action dimension"
    )
    lines = [heading, "", *_table(report["dimensions"]), ""]
    if existing is None:
        lines.append(f"{report['path']} was not there." if report["written"] else f"{report['path']} is not there.")
    elif "unreadable" in existing:
        lines.append(f"The file that is there cannot be compared: {existing['unreadable']}")
    elif not existing["differing"]:
        lines.append(f"{report['path']} holds the same.")
    else:
        worst = existing["worst"]
        off = "" if worst["off"] is None else f", {worst['off']:.2g} of its spread away"
        there = "missing" if worst["there"] is None else f"{worst['there']:.6g}"
        lines.append(
            f"{report['path']} differs in {existing['differing']} of {len(report['dimensions'])} dimensions, most in "
            f"the {worst['field']} of {worst['label']}: {there} there, {worst['data']:.6g} in the data{off}."
        )
    if report["written"]:
        lines.append(f"Written: {report['path']}" + (f"; the old one is {report['kept']}" if report["kept"] else ""))
        if report["use"]:
            lines.append(f"To use it: {report['use']}; without it the run computes the same when it starts.")
    else:
        lines.append("Nothing was written; --write does it.")
    return "\n".join(lines) + "\n"


def _table(dimensions: Sequence[Mapping[str, Any]]) -> list[str]:
    fields = ("mean", "std", "q01", "q99", "min", "max", "furthest")
    # A dimension that never moves stays at the middle or the end of the range: no fault, but good to know.
    worst = sorted(dimensions, key=lambda d: (-abs(d["furthest"]), d["name"], d["index"]))[:_SHOWN]
    rows = [("the worst dimensions" if len(dimensions) > _SHOWN else "dimension", *fields[:-1], "normalised", "")]
    rows += [(d["label"], *(f"{d[f]:.4g}" for f in fields), "constant" if d["constant"] else "") for d in worst]
    constant = [d["label"] for d in dimensions if d["constant"] and d not in worst]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if 0 < column <= len(fields) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if len(dimensions) > _SHOWN:
        lines.append(
            f"and {len(dimensions) - _SHOWN} more" + (f"; constant: {', '.join(constant)}" if constant else "")
        )
    return lines
