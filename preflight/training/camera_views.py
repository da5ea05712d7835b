"""What the model sees, as a picture: the current batch's camera views at milestone steps."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from preflight.runs.protocol import Batch, Facts
from preflight.training.tracking import Tracker

logger = logging.getLogger(__name__)

MAX_SAMPLES = 4


def milestone_steps(facts: Facts) -> frozenset[int]:
    """The steps whose batch is pictured: the first, each save, the last, and what the config names beside them.

    Steps count from 0 to `num_train_steps - 1`: a milestone beyond is never reached.
    """
    steps = {0, facts.num_train_steps - 1, *range(0, facts.num_train_steps, facts.save_interval), *facts.milestones}
    return frozenset(step for step in steps if 0 <= step < facts.num_train_steps)


def camera_views(batch: Batch) -> dict[str, np.ndarray]:
    """The first samples of a batch side by side, uint8 `[224, n * 224, 3]` for each camera that is not masked out.

    Takes the batch that the step trains on: fetching another for the picture would take it away from training.
    """
    views = {}
    for slot, images in batch["image"].items():
        if not np.asarray(batch["image_mask"][slot]).any():
            continue
        views[slot] = np.concatenate(list(to_uint8(np.asarray(images[:MAX_SAMPLES]))), axis=1)
    return views


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Pictures in the values that a screen shows, of the same shape.

    Args:
        images: uint8, given back as it is; or floats from -1 to 1, as pi0 takes them. What lies beyond is clipped, and
            what is no number becomes black.
    """
    if images.dtype == np.uint8:
        return images
    return np.nan_to_num((np.clip(images, -1, 1) + 1) * 127.5).round().astype(np.uint8)


def save_camera_views(views: dict[str, np.ndarray], folder: Path, step: int) -> Path:
    """Writes the views of all cameras, one below the other, as `step_<step>.png`; returns the file."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    path = folder / f"step_{step:06d}.png"
    Image.fromarray(np.concatenate(list(views.values()), axis=0)).save(path)
    return path


def picture(batch: Batch, folder: Path, step: int, tracker: Tracker) -> list[Path]:
    """Writes the camera views of a step's batch below the run's folder and gives them to wandb.

    Returns:
        The file; none where all cameras are masked out, or it cannot be written, which is warned about.
    """
    try:
        views = camera_views(batch)
        if not views:
            return []
        path = save_camera_views(views, folder / "camera_views", step)
    except OSError as error:
        logger.warning("camera views of step %d could not be written: %s", step, error)
        return []
    tracker.log_images("camera_views", list(views.values()), list(views), step)
    return [path]
