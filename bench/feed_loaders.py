"""The loaders that `bench.feed` compares, each opened as its own users open it.

What they deliver differs: ours and openpi's give the model's samples (224x224 pictures, normalised, tokenised or ready
for it), LeRobot's gives its own (full-size pictures in float32, actions as a chunk), and the limit gives nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.decode_limit import DecodeLimit, camera_frames
from preflight.config.schema import IMAGE_SIZE, IMAGE_SLOTS
from preflight.errors import PreflightError

PREFETCH_FACTOR = 2  # torch's default, and preflight's
HORIZON = 50  # actions of a chunk, as pi0 asks for them
STATE, ACTION = "observation.state", "action"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one loader is to load."""

    root: Path  # a LeRobot dataset
    run_file: Path  # the run on it, for preflight's own loader
    folder: Path  # for what libraries write on the way
    batch_size: int
    num_workers: int
    seed: int


# Ready to be started: called, it makes the loader and its workers.
Opened = Callable[[], Any]


def disk_cache(folder: Path) -> tuple[str, str]:
    """The settings of a frame cache on disk below a folder."""
    return "data.cache=disk", f"data.cache_dir={folder / 'frames'}"


def ours(setting: str, request: Request) -> Opened:
    """The run's samples in preflight's loader, with one setting changed; a cache in memory is filled before."""
    from preflight.data.loader import BatchLoader, start_worker_server
    from preflight.runs import load_run

    run = load_run(str(request.run_file), stack="native", assignments=_assignments(setting, request.folder))
    start_worker_server(run.facts.worker_modules)
    dataset = run.dataset()
    cache = getattr(dataset, "frame_cache", None)
    if setting == "data.cache=disk" and not (cache and cache.is_open):
        raise PreflightError("its frame cache is not there, or not whole")  # what is decoded is another row

    def opened() -> BatchLoader:
        return BatchLoader(
            dataset,
            batch_size=request.batch_size,
            num_workers=request.num_workers,
            seed=request.seed,
            prefetch_factor=PREFETCH_FACTOR,
        )

    if setting == "data.cache=memory":
        with opened() as loader:
            for _ in range(len(dataset) // request.batch_size):
                next(loader)
    return opened


def _assignments(setting: str, folder: Path) -> tuple[str, ...]:
    return disk_cache(folder) if setting == "data.cache=disk" else (setting,)


def lerobot(backend: str | None, start_method: str, request: Request) -> Opened:
    """LeRobot's dataset in torch's DataLoader, as its training script has it.

    Samples are drawn from an order without end: LeRobot's own loop starts its workers anew at the end of each epoch,
    which on a small dataset would be most of what is measured.

    Args:
        backend: Its `video_backend`; None is its own choice.
        start_method: Of the workers.
        request: What to load.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ["HF_DATASETS_CACHE"] = str(request.folder / "datasets")
    import torch

    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
    except ImportError:  # 0.1.0, which openpi pins
        from lerobot.common.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata("bench/feed", root=request.root)
    chunk = {ACTION: [step / meta.fps for step in range(HORIZON)]}
    dataset = LeRobotDataset("bench/feed", root=request.root, delta_timestamps=chunk, video_backend=backend)
    generator = torch.Generator().manual_seed(request.seed)
    order = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=1 << 40, generator=generator)

    def opened() -> _Iterating:
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=request.batch_size,
            sampler=order,
            num_workers=request.num_workers,
            prefetch_factor=PREFETCH_FACTOR,
            multiprocessing_context=start_method,
        )
        return _Iterating(iter(loader))

    return opened


def limit(request: Request) -> Opened:
    """Nothing but random decoding, in as many processes."""
    cameras = camera_frames(request.root)
    return lambda: DecodeLimit(
        cameras, batch_size=request.batch_size, num_workers=request.num_workers, seed=request.seed
    )


def openpi(request: Request) -> Opened:
    """The loader of openpi with its transforms, but without the tokenizer, which would have to be downloaded."""
    data, model = _openpi_data(request)
    from preflight.runs.openpi.install import openpi as from_openpi

    loader = from_openpi("training.data_loader", "create_torch_data_loader")(
        data,
        model,
        action_horizon=HORIZON,
        batch_size=request.batch_size,
        shuffle=True,
        num_workers=request.num_workers,
        seed=request.seed,
        skip_norm_stats=True,
    )
    return lambda: _Iterating(iter(loader))


def ours_on_openpis(request: Request) -> Opened:
    """The very samples of `openpi`, from openpi's own dataset and transforms, in preflight's loader."""
    data, model = _openpi_data(request)
    from bench.feed_openpi import OwnData
    from preflight.data.loader import BatchLoader, start_worker_server
    from preflight.runs.openpi.install import openpi as from_openpi
    from preflight.runs.openpi.run import OpenpiRun

    config = from_openpi("training.config", "TrainConfig")(name="feed", model=model, data=OwnData(data))
    run = OpenpiRun(config)
    start_worker_server((*run.facts.worker_modules, "bench.feed_openpi"))
    dataset = run.dataset()
    return lambda: BatchLoader(
        dataset,
        batch_size=request.batch_size,
        num_workers=request.num_workers,
        seed=request.seed,
        prefetch_factor=PREFETCH_FACTOR,
    )


def _openpi_data(request: Request) -> tuple[Any, Any]:
    """A `DataConfig` and a model config of openpi's for the dataset."""
    from preflight.runs.openpi.install import is_installed
    from preflight.runs.openpi.install import openpi as from_openpi

    if not is_installed():
        raise PreflightError("not installed")
    # LeRobot's 0.1.0, which openpi pins, looks for a dataset below this folder.
    home = request.folder / "lerobot"
    home.joinpath("bench").mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        home.joinpath("bench/feed").symlink_to(request.root.resolve())
    os.environ |= {"HF_LEROBOT_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ |= {"HF_DATASETS_CACHE": str(request.folder / "datasets"), "JAX_PLATFORMS": "cpu"}
    from bench.feed_openpi import RobotInputs
    from preflight.data.metadata import read_info

    cameras = dict(zip(IMAGE_SLOTS, read_info(request.root).camera_keys, strict=False))
    Group, Repack, Resize, Pad = from_openpi(  # noqa: N806
        "transforms", "Group", "RepackTransform", "ResizeImages", "PadStatesAndActions"
    )
    model = from_openpi("models.pi0_config", "Pi0Config")()
    data = from_openpi("training.config", "DataConfig")(
        repo_id="bench/feed",
        repack_transforms=Group(inputs=[Repack({**cameras, "state": STATE, "actions": ACTION})]),
        data_transforms=Group(inputs=[RobotInputs(IMAGE_SLOTS)]),
        model_transforms=Group(inputs=[Resize(IMAGE_SIZE, IMAGE_SIZE), Pad(model.action_dim)]),
        action_sequence_keys=(ACTION,),
        norm_stats={},  # of no key: nothing is normalised
    )
    return data, model


@dataclass(frozen=True)
class Row:
    """One loader of the comparison."""

    key: str
    title: str
    whose: str  # "ours", "lerobot", "openpi" or "limit"
    open: Callable[[Request], Opened]


ROWS: tuple[Row, ...] = (
    Row("ours", "ours, decoded", "ours", partial(ours, "data.resize=swscale")),
    Row("ours-exact", "ours, exact pixels", "ours", partial(ours, "data.resize=pil")),
    Row("ours-disk", "ours, cache on disk", "ours", partial(ours, "data.cache=disk")),
    Row("ours-memory", "ours, cache in memory", "ours", partial(ours, "data.cache=memory")),
    Row("lerobot", "LeRobot, fork", "lerobot", partial(lerobot, None, "fork")),
    Row("lerobot-pyav", "LeRobot, fork, pyav", "lerobot", partial(lerobot, "pyav", "fork")),
    Row("lerobot-spawn", "LeRobot, spawn", "lerobot", partial(lerobot, None, "spawn")),
    Row("lerobot-spawn-pyav", "LeRobot, spawn, pyav", "lerobot", partial(lerobot, "pyav", "spawn")),
    Row("openpi", "openpi", "openpi", openpi),
    Row("ours-openpi", "ours, openpi's samples", "openpi", ours_on_openpis),
    Row("limit", "bare random decoding", "limit", limit),
)


class _Iterating:
    """An iterator whose workers are all the processes that this one has started through multiprocessing."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def worker_pids(self) -> tuple[int, ...]:
        return tuple(child.pid for child in multiprocessing.active_children() if child.pid is not None)

    def __iter__(self) -> Iterator[Any]:
        return self._batches

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in multiprocessing.active_children():
            child.kill()
