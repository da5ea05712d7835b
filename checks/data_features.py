"""`data.features`: the dataset has the columns and cameras that the run asks for."""

from __future__ import annotations

import math

from checks.context import CheckContext, with_settings
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.data.metadata import DatasetInfo, nearest, read_info


def _features(context: CheckContext) -> Outcome:
    run = context.run
    root = run.source()
    if root is None:
        return passed("samples are made up without a dataset: no column is asked for")
    info = read_info(root)
    wanted = run.columns()
    measured = {"wanted": list(wanted), "features": list(info.features)}
    if missing := [key for key in wanted if key not in info.features]:
        named = ", ".join(repr(key) for key in missing)
        if missing == ["task_index"] and "data.prompt" in run.facts.settings:
            return failed(
                "the dataset has no column task_index, by which frames are given their task's text",
                measured=measured,
                hint=Hint(
                    text="set one prompt for all frames",
                    commands=with_settings(context, "data.prompt=put the lighter in the cup"),
                ),
            )
        return failed(
            f"the run asks for {named}, which the dataset does not have",
            measured=measured,
            evidence=tuple(f"{key}: {nearest(key, tuple(info.features))}" for key in missing[:10]),
            hint=Hint(text=f"{nearest(missing[0], tuple(info.features))}. Name the keys that it has in the config"),
        )
    # What the transforms make of the columns is asked only now: without one of them they cannot answer.
    used = run.cameras()
    measured |= {"cameras": list(info.camera_keys), "cameras_used": list(used)}
    if wrong := [key for key in used if key not in info.camera_keys]:
        return failed(
            f"{wrong[0]!r} is not one of the dataset's cameras",
            measured=measured,
            hint=Hint(text=nearest(wrong[0], info.camera_keys).replace("The dataset has", "Its cameras")),
        )
    unused = [key for key in info.camera_keys if key not in used]
    covered = (
        f"{len(wanted)} of the dataset's {len(info.features)} features are asked for and there: {', '.join(wanted)}"
    )
    if not unused:
        return passed(covered, measured=measured)
    names = ", ".join(unused)
    if not run.facts.decodes_all_cameras:
        return passed(f"{covered}; not used and not decoded: {names}", measured=measured)
    share = _pixels(info, unused) / _pixels(info, info.camera_keys)
    return warned(
        f"{names}: decoded for every sample and never seen by the model, {share:.0%} of the pixels that are decoded",
        measured=measured | {"unused_pixel_share": round(share, 4)},
        evidence=tuple(f"{key}: {'x'.join(map(str, info.features[key].shape))}" for key in unused),
        hint=Hint(
            text=f"the {run.facts.stack} stack's reader decodes every camera of a dataset: train on a copy without "
            f"{'it' if len(unused) == 1 else 'them'}, or use --stack native, which opens only what the model sees"
        ),
    )


def _pixels(info: DatasetInfo, cameras: list[str] | tuple[str, ...]) -> int:
    return sum(math.prod(info.features[key].shape) for key in cameras)


CHECK = Check(
    id="data.features",
    title="The dataset has what the run asks for",
    level="standard",
    severity="fail",
    requires=("data.metadata",),
    failures=("F24", "F30"),
    timeout_s=120,
    run=_features,
    doc="Looks each key that the config reads up among the dataset's features and names the nearest for one that is "
    "not there: `actions` where the dataset says `action` otherwise ends in a KeyError in the first batch. Cameras "
    "that are decoded and reach no image slot are named with their share of all pixels, by which decoding time goes.",
)
