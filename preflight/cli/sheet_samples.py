"""The samples of a contact sheet, made by the run, and what is to be said of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from preflight import __version__
from preflight.blame import one_line
from preflight.cli.sheet_frames import Frame, pick_frames
from preflight.data.metadata import read_info
from preflight.data.normalised import FAR_OUT, dimension_labels
from preflight.errors import DataError, PreflightError
from preflight.report.contact_sheet import ContactSheet, Line, Row
from preflight.training.camera_views import to_uint8

if TYPE_CHECKING:
    from preflight.runs.protocol import Prompt, Run

# Further out than this a normalised value is written in red. For quantiles the same bound as for z-scores, for a person
# looks here for what is far off: the last hundredth of healthy data lies beyond FAR_OUT["quantile"].
_FAR = FAR_OUT["zscore"]


def gather(run: Run) -> ContactSheet:
    """Makes some samples of a run, and what is to be said of them.

    Raises:
        PreflightError: No sample can be made.
    """
    dataset = run.dataset()
    if not len(dataset):
        raise DataError("the dataset has no samples")
    picked = pick_frames(run.source(), len(dataset))
    prompts, no_prompts = _prompts(run)
    norm = f"normalised {_norm(run)}" if picked.from_dataset else "made up"
    labels = _labels(run, picked.frames[0].sample)
    samples = [_sample(dataset, frame.sample) for frame in picked.frames]
    made = [sample for sample in samples if not isinstance(sample, str)]
    if not made:
        raise DataError(str(samples[0]))
    rows = [
        _row(frame, sample, prompts.get(-1 if frame.task is None else frame.task), labels, run.facts.max_token_len)
        for frame, sample in zip(picked.frames, samples, strict=True)
    ]
    used = [slot for slot in made[0]["image"] if any(_is_used(sample, slot) for sample in made)]
    captions, cameras = _captions(run, used)
    lines: list[Line] = [(line, "plain") for line in picked.described]
    lines.append(
        (f"Pictures as the model receives them, after resize and padding; state and actions are {norm}.", "plain")
    )
    if cameras:
        lines.append((f"Cameras that reach the model: {', '.join(cameras)}", "plain"))
    if run.facts.assignments:
        lines.append((f"With {' '.join(f'--set {assignment}' for assignment in run.facts.assignments)}", "faint"))
    if no_prompts and picked.from_dataset:
        lines.append((f"The prompts are not known here: {no_prompts}", "alarm"))
    return ContactSheet(
        title=f"{run.facts.name} ({run.facts.stack} stack, preflight {__version__})",
        lines=tuple(lines),
        columns={
            slot: captions.get(slot, "" if slot in used else "masked out in all samples") for slot in made[0]["image"]
        },
        rows=tuple(rows),
    )


def _sample(dataset: Any, index: int) -> dict[str, Any] | str:
    """One sample, or why it cannot be made."""
    try:
        sample = dataset[index]
    except PreflightError as error:
        return error.message
    except Exception as error:  # noqa: BLE001 - a user's own transforms may raise anything
        return one_line(error)
    pictures = sample.get("image")
    return sample if isinstance(pictures, dict) and pictures else "the sample has no pictures"


def _prompts(run: Run) -> tuple[Mapping[int, Prompt], str]:
    try:
        return run.prompts(), ""
    except PreflightError as error:
        return {}, error.message
    except Exception as error:  # noqa: BLE001 - a user's own tokenizer may raise anything
        return {}, one_line(error)


def _norm(run: Run) -> str:
    try:
        return {"zscore": "by z-score", "quantile": "by quantiles"}[run.statistics().norm]
    except PreflightError:
        return "in a way that is not known here"


def _labels(run: Run, frame: int) -> Mapping[str, tuple[str, ...]]:
    """What to call the dimensions of state and actions, those before they are padded; nothing where it is not known."""
    try:
        values = run.before_normalisation(np.array([frame]))
        info, columns = read_info(root) if (root := run.source()) else None, run.columns()
        return {name: dimension_labels(info, columns, name, array.shape[-1]) for name, array in values.items() if info}
    except PreflightError:  # made-up samples have none
        return {}


def _captions(run: Run, used: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The dataset's key for each slot; or, where that is not to be had, the cameras that are in some slot."""
    settings = run.facts.settings
    named = {slot: str(key) for slot in used if (key := settings.get(f"data.cameras.{slot}")) is not None}
    if named:
        return named, ()
    try:
        cameras = run.cameras()
    except PreflightError:
        return {}, ()
    return ({used[0]: cameras[0]}, ()) if len(cameras) == len(used) == 1 else ({}, cameras)


def _row(
    frame: Frame,
    sample: dict[str, Any] | str,
    prompt: Prompt | None,
    labels: Mapping[str, tuple[str, ...]],
    room: int,
) -> Row:
    lines: list[Line] = []
    if prompt is not None:
        cut = prompt.num_tokens > room
        lines.append(("no prompt", "alarm") if prompt.text is None else (f'"{prompt.text}"', "plain"))
        lines.append(
            (
                f"task {frame.task}, {prompt.num_tokens} of {room} tokens{', the prompt is cut' if cut else ''}",
                "alarm" if cut else "faint",
            )
        )
    if isinstance(sample, str):
        return Row(
            title=frame.title, lines=tuple(lines), pictures={}, failure=sample, starts_group=frame.starts_episode
        )
    pictures: dict[str, np.ndarray | str] = {}
    for slot, image in sample["image"].items():
        pictures[slot], odd = _picture(np.asarray(image)) if _is_used(sample, slot) else ("masked out", "")
        if odd:
            lines.append((f"{slot}: {odd}", "alarm"))
    values = {}
    for name in ("state", "actions"):
        if name in sample:
            array = np.atleast_1d(sample[name])
            named = labels.get(name, tuple(f"{name}[{index}]" for index in range(array.shape[-1])))
            values[name] = array[..., : len(named)]
            lines += _range(name, values[name], named)
    actions = values.get("actions")
    return Row(
        title=frame.title,
        lines=tuple(lines),
        pictures=pictures,
        actions=actions if actions is not None and actions.ndim == 2 and actions.size else None,
        starts_group=frame.starts_episode,
    )


def _is_used(sample: dict[str, Any], slot: str) -> bool:
    return bool(sample.get("image_mask", {}).get(slot, True))


def _picture(image: np.ndarray) -> tuple[np.ndarray | str, str]:
    """What to draw for a slot, and what is wrong with its values."""
    if image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        return f"shape {image.shape} is no picture [height, width, 3]", ""
    odd = ""
    if image.dtype != np.uint8 and not (np.abs(image) <= 1).all():
        odd = f"values from {np.min(image):.4g} to {np.max(image):.4g}, the model expects -1 to 1"
    return to_uint8(image), odd


def _range(name: str, values: np.ndarray, labels: tuple[str, ...]) -> list[Line]:
    finite = values[np.isfinite(values)]
    lines: list[Line] = []
    if finite.size:
        outside = int((np.abs(finite) > 1).sum())
        said = f"{name}: {finite.min():.2f} to {finite.max():.2f}, {outside} of {values.size} outside [-1, 1]"
        if np.abs(finite).max() > _FAR:
            furthest = int(np.argmax(np.abs(np.where(np.isfinite(values), values, 0)))) % values.shape[-1]
            lines.append((f"{said}; furthest is {labels[furthest]}", "alarm"))
        else:
            lines.append((said, "plain"))
    if finite.size < values.size:
        lines.append((f"{name}: {values.size - finite.size} of {values.size} values are not finite", "alarm"))
    return lines
