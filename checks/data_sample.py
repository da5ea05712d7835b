"""`data.sample`: a sample is what the model expects."""

from __future__ import annotations

from typing import Any

from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.runs import command_line


def _sample(context: CheckContext) -> Outcome:
    import numpy as np

    dataset = context.run.dataset()
    picked = sorted({0, len(dataset) // 2, len(dataset) - 1})
    spec, made_up = context.run.batch_spec(1), context.run.source() is None
    problems: list[str] = []
    ranges: dict[str, Any] = {}
    flat: dict[str, list[int]] = {}  # by slot, the samples in which it shows nothing
    for index in picked:
        sample = dataset[index]
        wanted, found = _flatten(spec), _flatten(sample)
        problems += [f"sample {index}: {key} is missing" for key in sorted(wanted.keys() - found.keys())]
        for key in wanted.keys() & found.keys():
            value = np.asarray(found[key])
            shape, dtype = tuple(wanted[key].shape[1:]), np.dtype(wanted[key].dtype)
            if value.shape != shape:
                problems.append(f"sample {index}: {key} has shape {list(value.shape)}, the model wants {list(shape)}")
            elif value.dtype != dtype and not (key.startswith("image/") and value.dtype == np.uint8):
                problems.append(f"sample {index}: {key} is {value.dtype}, the model wants {dtype}")
            elif value.dtype.kind == "f":
                if not np.isfinite(value).all():
                    problems.append(f"sample {index}: {key} holds {int((~np.isfinite(value)).sum())} NaN or inf")
                else:
                    low, high = ranges.get(key, (np.inf, -np.inf))
                    ranges[key] = (min(low, float(value.min())), max(high, float(value.max())))
        seen = [slot for slot, mask in sample["image_mask"].items() if mask]
        if made_up:
            continue  # no camera is meant to show something
        if not seen:
            problems.append(f"sample {index}: every camera is masked out, the model would train blind")
        for slot in seen:
            if np.ptp(np.asarray(sample["image"][slot])) == 0:
                flat.setdefault(slot, []).append(index)
    # A single one may be a camera that was not awake yet.
    always = [slot for slot, indices in flat.items() if len(indices) == len(picked)]
    problems += [f"{slot} is one flat colour in all samples looked at" for slot in always]
    measured: dict[str, Any] = {
        key: {"min": round(low, 4), "max": round(high, 4)} for key, (low, high) in ranges.items()
    }
    window, spread = context.run.facts.settings.get("data.shuffle_window"), ""
    if window is not None and hasattr(dataset, "batch_order"):
        facts = context.run.facts
        windowed, everywhere = dataset.batch_order(facts.batch_size, facts.seed).episodes_per_batch()
        measured["episodes_per_batch"] = {"windowed": round(windowed, 2), "all": round(everywhere, 2)}
        spread = (
            f"; a batch of {facts.batch_size} has samples of {windowed:.1f} episodes within the shuffle window of "
            f"{window}, {everywhere:.1f} without it"
        )
    if problems:
        return failed(
            problems[0],
            measured=measured,
            evidence=tuple(problems[:10]),
            hint=Hint(text="look at [data] of the config: cameras, state, actions, norm"),
        )
    if flat:
        lines = [f"{slot} is one flat colour in sample {', '.join(map(str, flat[slot]))}" for slot in flat]
        return warned(
            f"{lines[0]}, of {', '.join(map(str, picked))} that were looked at",
            measured=measured,
            evidence=tuple(lines),
            hint=Hint(
                text="look at the pictures; a camera that wakes up late gives black frames at an episode's start",
                commands=(command_line(context.run.facts, "check", "--contact-sheet", "sheet.png"),),
            ),
        )
    cameras = ", ".join(slot for slot, mask in sample["image_mask"].items() if mask or made_up)
    span = "; ".join(f"{key} {low:.2f} … {high:.2f}" for key, (low, high) in sorted(ranges.items()))
    return passed(
        f"samples {', '.join(map(str, picked))} fit the model: {cameras}; normalised {span}{spread}", measured=measured
    )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}/{key}" if prefix else key)
    return flat


CHECK = Check(
    id="data.sample",
    title="A sample is what the model expects",
    level="standard",
    severity="fail",
    requires=("data.videos", "data.features", "data.prompts", "data.norm-stats"),
    failures=("F22", "F30", "F31"),
    timeout_s=120,
    run=_sample,
    doc="Takes the first, the middle and the last sample through every transform (decode, resize, delta actions, "
    "normalisation, tokens, padding) and compares shapes, dtypes and values with the model's batch.",
)
