"""A run's folder for the tests of its report: the files of a real demo run, with what the test changes."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

REAL = Path(__file__).parent / "data" / "demo_run"
STEPS = (0, 20, 40, 59)  # with a picture
SUMMARY = {
    "steps": 60,
    "seconds": 25.1,
    "clocks": {"compile_s": 9.5, "data_wait_s": 1.4, "step_s": 20.1, "host_s": 1.2, "checkpoint_s": 1.9},
    "goodput": 0.59,
    "steps_per_sec": 2.7,
    "samples_per_sec": 10.8,
    "best_loss": 1.34,
    "last_loss": 1.36,
    "checkpoints": [59],
    "exit": "completed",
    "reason": None,
}


def run_folder(place, *, summary=SUMMARY, **changes):
    """A complete run below a place; `changes` are settings of its config."""
    folder = place / "runs" / "pi0_lighter_cup_demo" / "x"
    folder.mkdir(parents=True)
    for path in REAL.iterdir():
        shutil.copy(path, folder)
    change(folder, "config.json", **changes)
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "wandb_id.txt").write_text("l80nvrl8\n")
    (folder / "camera_views").mkdir()
    for step in STEPS:
        picture(folder / "camera_views" / f"step_{step:06d}.png", step)
    (folder / "59" / "params").mkdir(parents=True)
    (folder / "59" / "params" / "data").write_bytes(bytes(5_353_052))
    return folder


def picture(path, seed=0, size=(96, 128)):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (size[0] // 16, size[1] // 16, 3), np.uint8)
    Image.fromarray(small).resize((size[1], size[0])).save(path)


def change(folder, name, /, **values):
    document = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(document | values))


def measure(folder, check, **values):
    """Changes what a check measured."""
    document = json.loads((folder / "clearance.json").read_text())
    next(one for one in document["checks"] if one["id"] == check)["measured"].update(values)
    (folder / "clearance.json").write_text(json.dumps(document))


def log(folder, records):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def records(steps, loss=0.05, every=100, **values):
    """Metrics as the loop logs them, with a constant or a function of the step for each."""
    at = lambda value, step: value(step) if callable(value) else value  # noqa: E731
    real = json.loads((REAL / "metrics.jsonl").read_text().splitlines()[3])
    found = []
    for step in [*range(0, steps, every), steps - 1]:
        record = real | {"step": step, "time": 1.7e9 + step / 8, "loss": at(loss, step), "grad_norm": 1.0}
        record |= {"grad_max": 5.0} | {name: at(value, step) for name, value in values.items()}
        if step == 0:
            record = {name: value for name, value in record.items() if not name.startswith("efficiency/")}
        found.append(record)
    return found
