"""`data.norm-stats`: the normalisation statistics are there, and they are of this data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from checks.context import CheckContext, with_settings
from checks.data_columns import frame_text, scanned
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.data.metadata import read_info

if TYPE_CHECKING:
    import numpy as np

    from preflight.data.normalised import Dimension
    from preflight.data.normalize import NormStats
    from preflight.data.streamed_stats import ValueSource
    from preflight.runs.protocol import Statistics

    Values = Mapping[str, np.ndarray]  # "state" and "actions" before normalisation, by frame
    Labels = Mapping[str, Sequence[str]]  # of their dimensions

_FRAMES = 4096  # looked at, spread over the dataset
_SHOWN = 8  # dimensions in the evidence

# One action value at it adds as much to the loss of a batch of 32 samples, 50 steps and 32 dimensions as 10,000 values
# at 1, a fifth of the batch: wherever it comes up, it alone makes the gradient. Real recordings under their own
# statistics stay within 10 (Unitree G1: 5 z-scores, 2.2 by quantiles).
_BLOWN_UP = 100.0


def _norm_stats(context: CheckContext) -> Outcome:
    import numpy as np

    from preflight.data.normalised import dimension_labels, dimensions, drowned_in_the_statistics, off_the_statistics
    from preflight.data.streamed_stats import ArrayBlock

    run = context.run
    root = run.source()
    if root is None:
        return passed("samples are made up without a dataset: they are not normalised")
    statistics = run.statistics()
    if (stats := statistics.stats) is None:
        return _missing(context, statistics)
    info, columns = read_info(root), run.columns()
    # Wherever a recorded value is not finite is looked at, too: one such frame is enough.
    broken = [first for column in scanned(context).columns.values() for _, first in column.not_finite.values()]
    frames = np.union1d(_spread(info.total_frames), np.array(broken, dtype=np.int64))
    values = run.before_normalisation(frames)
    labels = {name: dimension_labels(info, columns, name, array.shape[-1]) for name, array in values.items()}
    measured: dict[str, Any] = {
        "norm": statistics.norm,
        "path": None if statistics.path is None else str(statistics.path),
        "frames": info.total_frames,
        "frames_looked_at": len(frames),
    }
    repair = Hint(text="repair or drop the episode: one NaN or inf makes the loss NaN, and the statistics with it")
    if wrong := _not_finite(context, values, frames, labels):
        return failed(wrong[0], measured=measured, evidence=wrong[:_SHOWN], hint=repair)
    if wrong := _unusable(statistics, stats, values, labels):
        # Computed from the data a moment ago they are NaN where some frame is, be it none of these.
        hint = repair if statistics.path is None else _compute_again(statistics)
        return failed(wrong[0], measured=measured, evidence=wrong[:_SHOWN], hint=hint)
    source: ValueSource = ArrayBlock(values)
    if context.level == "full":
        source = run.all_before_normalisation()
        measured["frames_looked_at"] = source.frames

    def on_frames(done: int, total: int) -> None:
        context.progress("frames normalised", done, total)

    seen = dimensions(source, stats, statistics.norm, labels, progress=on_frames)
    measured["furthest"] = {
        name: round(max((d for d in seen if d.name == name), key=lambda d: abs(d.furthest)).furthest, 4)
        for name in values
    }
    if blown := sorted((d for d in seen if abs(d.furthest) > _BLOWN_UP), key=lambda d: -abs(d.furthest)):
        more = f"; {len(blown)} of {len(seen)} dimensions go beyond {_BLOWN_UP:g}" if len(blown) > 1 else ""
        return failed(
            f"{blown[0].label} normalises to {blown[0].furthest:,.0f}: {_reason(blown[0], statistics)}{more}",
            measured=measured | {"blown_up": [d.label for d in blown]},
            expected={"furthest": f"within {_BLOWN_UP:g}"},
            evidence=_table(blown, statistics),
            hint=_within_range(context, statistics, values, blown),
        )
    if surplus := _surplus(stats, values):
        return warned(surplus[0], measured=measured, evidence=surplus, hint=_compute_again(statistics))
    if statistics.model_norm not in (None, statistics.norm):
        return _other_formula(context, statistics, measured)
    if statistics.path is None:  # computed from the data a moment ago
        return _passed(seen, statistics, measured)
    if off := off_the_statistics(seen, statistics.norm):
        d, others = off[0], f"{len(off)} of {len(seen)} dimensions are off, most" if len(off) > 1 else "look at"
        summary = (
            f"{others} {d.label}, {_about(d.given_mean, d.given_std)} there and {_about(d.mean, d.std)} in the data"
        )
        return _of_other_data(summary, off, statistics, measured)
    for name in values:
        if drowned := drowned_in_the_statistics([d for d in seen if d.name == name]):
            summary = (
                f"{len(drowned)} of {len(labels[name])} dimensions of {name} move less than a tenth as far as there"
            )
            return _of_other_data(summary, drowned, statistics, measured)
    return _passed(seen, statistics, measured)


def _spread(total: int) -> np.ndarray:
    import numpy as np

    # Evenly: what a frame's neighbours repeat is seen once, and every episode has its share.
    return np.unique(np.linspace(0, total - 1, min(total, _FRAMES)).round().astype(np.int64))


def _missing(context: CheckContext, statistics: Statistics) -> Outcome:
    path, commands = statistics.path, _commands(statistics)
    if statistics.remote is not None:
        return failed(
            f"the normalisation statistics are not on this machine: openpi would fetch them from {statistics.remote}",
            measured={"path": str(path), "remote": statistics.remote},
            hint=Hint(text="fetch them before the run starts, or compute your own", commands=commands),
        )
    measured = {"path": str(path), "elsewhere": [str(found) for found in statistics.elsewhere]}
    if not statistics.elsewhere or path is None:
        return failed(
            f"the normalisation statistics are missing: {path} does not exist",
            measured=measured,
            hint=Hint(text=f"compute them before the run starts{_slow(statistics)}", commands=commands),
        )
    found, repo_id = statistics.elsewhere[0], str(context.run.facts.settings.get("data.repo_id"))
    text = "copy them to where the run looks"
    # The folder is <assets_dir>/<asset_id>; what was computed for a dataset lies under the dataset's own name.
    if str(found.parent).endswith(f"/{repo_id}") and str(path).startswith(str(found.parent).removesuffix(repo_id)):
        text += f", or set the config's asset_id to {repo_id!r}"
    copy = f"mkdir -p {shlex.quote(str(path.parent))} && cp {shlex.join([str(found), str(path)])}"
    return failed(
        f"the normalisation statistics are not where the run looks: {path} does not exist, they are in {found}",
        measured=measured,
        evidence=tuple(f"found: {file}" for file in statistics.elsewhere),
        hint=Hint(text=f"{text}; or compute them again{_slow(statistics)}", commands=(copy, *commands)),
    )


def _commands(statistics: Statistics) -> tuple[str, ...]:
    return tuple(command for command in (statistics.command, statistics.other_command) if command is not None)


def _slow(statistics: Statistics) -> str:
    if not statistics.other_decodes:
        return ""
    return " (from the parquet columns alone; openpi's own script decodes every picture for it, which may take hours)"


def _not_finite(context: CheckContext, values: Values, frames: np.ndarray, labels: Labels) -> tuple[str, ...]:
    import numpy as np

    lines = []
    for name, array in values.items():
        broken = np.asarray(~np.isfinite(array)).reshape(len(frames), -1, array.shape[-1])
        # Its own action comes first in a frame's chunk; with those that follow, a whole horizon of frames is broken.
        own = broken[:, 0] if broken[:, 0].any() else np.asarray(broken.any(axis=1))
        lines += [
            f"{labels[name][index]} is NaN or inf in {int(own[:, index].sum()):,} of {len(frames):,} frames, "
            f"the first is {frame_text(context, int(frames[int(own[:, index].argmax())]))}"
            for index in np.flatnonzero(own.any(axis=0)).tolist()
        ]
    return tuple(lines)


def _unusable(
    statistics: Statistics, stats: Mapping[str, NormStats], values: Values, labels: Labels
) -> tuple[str, ...]:
    import numpy as np

    lines = []
    for name, array in values.items():
        width, have = array.shape[-1], len(stats[name].mean)
        fields = {"mean": stats[name].mean, "std": stats[name].std}
        if have < width:
            lines.append(f"the statistics of {name} have {have} dimensions, the data {width}")
            continue
        if statistics.norm == "quantile":
            fields |= {"q01": stats[name].q01, "q99": stats[name].q99}
            if np.isnan(stats[name].q01).all():
                lines.append(f"the statistics of {name} have no q01 and q99, which quantile normalisation needs")
                continue
        lines += [
            f"the {field} of {labels[name][index]} is {numbers[index]}"
            for field, numbers in fields.items()
            for index in np.flatnonzero(~np.isfinite(numbers[:width])).tolist()
        ]
    return tuple(lines)


def _surplus(stats: Mapping[str, NormStats], values: Values) -> tuple[str, ...]:
    lines = []
    for name, array in values.items():
        width, have = array.shape[-1], len(stats[name].mean)
        # Zeros are the padding of state and actions to the model's width.
        if have > width and (stats[name].mean[width:].any() or stats[name].std[width:].any()):
            lines.append(
                f"the statistics of {name} have {have} dimensions, the data {width}: the first {width} are taken "
                "without a word, be they of the same joints or not"
            )
    return tuple(lines)


def _reason(d: Dimension, statistics: Statistics) -> str:
    if statistics.norm == "quantile":
        given = f"q01 {d.given_q01:.5g} and q99 {d.given_q99:.5g} are {d.given_q99 - d.given_q01:.2g} apart"
    else:
        given = f"the std is {d.given_std:.2g} about a mean of {d.given_mean:.4g}"
    data = f"are {d.low:.4g} in every frame" if d.constant else f"go from {d.low:.4g} to {d.high:.4g}"
    return f"{given}, the data {data}"


def _about(mean: float, std: float) -> str:
    return f"{mean:.3g} ± {std:.2g}"


def _table(worst: Sequence[Dimension], statistics: Statistics) -> tuple[str, ...]:
    from preflight.data.normalised import FAR_OUT

    quantile = statistics.norm == "quantile"
    rows = [
        (
            d.label,
            f"{d.normalised_low:.4g} … {d.normalised_high:.4g}",
            f"{d.share_far_out:.1%} beyond {FAR_OUT[statistics.norm]:g}",
            f"data {d.low:.4g} … {d.high:.4g}",
            f"q01 {d.given_q01:.4g}, q99 {d.given_q99:.4g}"
            if quantile
            else f"mean {d.given_mean:.4g}, std {d.given_std:.4g}",
        )
        for d in worst[:_SHOWN]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return (*lines, f"and {len(worst) - _SHOWN} more") if len(worst) > _SHOWN else tuple(lines)


def _within_range(context: CheckContext, statistics: Statistics, values: Values, blown: Sequence[Dimension]) -> Hint:
    """The first remedy of which it was seen that it helps; by hand, if none does."""
    from preflight.data.normalize import compute, normalize

    own = {name: compute(values[name].reshape(-1, values[name].shape[-1])) for name in {d.name for d in blown}}

    def reach(norm: Any) -> float:
        under = {name: abs(normalize(values[name], stats, norm)) for name, stats in own.items()}
        return float(max(under[d.name][..., d.index].max() for d in blown))

    if statistics.path is not None and (within := reach(statistics.norm)) <= _BLOWN_UP:
        again = _compute_again(statistics)
        return Hint(text=f"{again.text}. The data's own keep every value within {within:.2g}", commands=again.commands)
    if statistics.norm == "quantile" and (within := reach("zscore")) <= _BLOWN_UP:
        return Hint(
            text="quantiles of a dimension that hardly ever moves nearly coincide: set them as far apart as the data "
            f"go, in the file of statistics, or normalise by mean and std, under which it stays within {within:.2g}",
            commands=with_settings(context, "data.norm=zscore") if "data.norm" in context.run.facts.settings else (),
        )
    return Hint(
        text="set that dimension's std, or its q01 and q99, as wide as the data go, in the file of statistics, or take "
        "those of the pretrained model, where it knows this robot"
    )


def _of_other_data(
    summary: str, worst: Sequence[Dimension], statistics: Statistics, measured: Mapping[str, Any]
) -> Outcome:
    again = _compute_again(statistics)
    reused = "Where those of a pretrained model are reused on purpose, ignore this check with that reason"
    return warned(
        f"the statistics of {statistics.path} are of other data: {summary}",
        measured={**measured, "disagreeing": [d.label for d in worst]},
        evidence=_table(worst, statistics),
        hint=Hint(text=f"{again.text}. {reused}", commands=again.commands),
    )


def _other_formula(context: CheckContext, statistics: Statistics, measured: Mapping[str, Any]) -> Outcome:
    settable = "data.norm" in context.run.facts.settings
    return warned(
        f"data are normalised by {statistics.norm}, the model wants {statistics.model_norm}: pi0 was pretrained on "
        "z-scores, pi0.5 and FAST on quantiles, and pi0.5 reads its state from bins between -1 and 1",
        measured=measured,
        expected={"norm": statistics.model_norm},
        hint=Hint(
            text="leave the choice to the model" + ("" if settable else ": openpi's use_quantile_norm"),
            commands=with_settings(context, "data.norm=none") if settable else (),
        ),
    )


def _compute_again(statistics: Statistics) -> Hint:
    return Hint(
        text=f"compute the statistics again, from this dataset and with this config's transforms{_slow(statistics)}",
        commands=_commands(statistics),
    )


def _passed(seen: Sequence[Dimension], statistics: Statistics, measured: Mapping[str, Any]) -> Outcome:
    from preflight.data.normalised import FAR_OUT

    spans = []
    for name in dict.fromkeys(d.name for d in seen):
        of = [d for d in seen if d.name == name]
        spans.append(f"{name} {min(d.normalised_low for d in of):.2f} … {max(d.normalised_high for d in of):.2f}")
    most = max(d.share_far_out for d in seen)
    looked, total = measured["frames_looked_at"], measured["frames"]
    frames = f"all {total:,} frames" if looked == total else f"{looked:,} of {total:,} frames, spread evenly,"
    summary = f"by {statistics.norm}, {frames} become {' and '.join(spans)}"
    summary += f"; at most {most:.1%} of a dimension is beyond {FAR_OUT[statistics.norm]:g}"
    if statistics.path is None:
        summary += "; the statistics are computed from the dataset"
    else:
        summary += f"; the data's means are within {max(d.shift for d in seen):.2g} std of those in {statistics.path}"
    return passed(summary, measured={**measured, "largest_share_far_out": round(most, 4)})


CHECK = Check(
    id="data.norm-stats",
    title="The normalisation statistics fit the data",
    level="standard",
    severity="fail",
    requires=("data.timestamps", "data.features"),
    failures=("F04", "F05", "F06", "F07"),
    timeout_s=1800,
    run=_norm_stats,
    doc="Looks for the file of statistics where the run looks for it, then normalises up to 4,096 frames, spread "
    "evenly over the dataset (at level full all of them), from the parquet columns alone and through the run's own "
    "transforms. It fails where statistics are missing, too short or not finite, and where a value ends up beyond 100: "
    "a dimension that hardly moved when they were computed. It warns where means, deviations or quantiles are so far "
    "from the data's that they are of another dataset or of other transforms, or where the formula is not the model's. "
    "A dimension that never moves and stays in range is no fault.",
)
