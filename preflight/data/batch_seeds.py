"""Random numbers of a dataset's augmentations: a pure function of the loader's seed and the batch's number.

So they differ from batch to batch and from worker to worker, and are the same again in a resumed run, after a worker
was restarted, and with another number of workers.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np


def seed_batch(seed: int, batch: int) -> None:
    """Seeds the global generators of `random`, numpy and, where the dataset's modules load it, torch (on the CPU).

    Args:
        seed: Of the loader.
        batch: Number of the batch that is read next.
    """
    # The key keeps these words apart from those that shuffle the epochs (preflight.data.sampler).
    words = np.random.SeedSequence([seed % 2**64, batch], spawn_key=(1,)).generate_state(6)
    random.seed(int(words[0]))
    np.random.seed(words[1:5])
    if (generator := _torch_generator()) is not None:
        generator.manual_seed(int(words[5]))


@contextlib.contextmanager
def own_random_state() -> Iterator[None]:
    """Gives the global generators back as they were; for batches that are read in the caller's own process."""
    python, legacy, generator = random.getstate(), np.random.get_state(), _torch_generator()
    torch_state = None if generator is None else generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        if generator is not None:
            generator.set_state(torch_state)


def tell_torch(number: int, num_workers: int, seed: int, dataset: Any) -> None:
    """Where torch is loaded: one thread, and `torch.utils.data.get_worker_info()` answers as in torch's own workers.

    Args:
        number: Of this worker.
        num_workers: In all.
        seed: Of the loader.
        dataset: That this worker reads.
    """
    if (torch := sys.modules.get("torch")) is None:
        return
    torch.set_num_threads(1)
    module: Any = importlib.import_module("torch.utils.data._utils.worker")
    information = {"id": number, "num_workers": num_workers, "seed": seed + number, "dataset": dataset}
    # Private, but the only place that datasets ask; newer versions may want more than this.
    with contextlib.suppress(AttributeError, TypeError):
        module._worker_info = module.WorkerInfo(**information)


def _torch_generator() -> Any:
    # Not `torch.manual_seed`, which keeps a call for CUDA each time that it is asked.
    return getattr(sys.modules.get("torch"), "default_generator", None)
