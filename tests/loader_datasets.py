"""Datasets that loader workers import by name."""

import importlib
import os
import random
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preflight.errors import DataError


@dataclass
class Numbers:
    """Sample i is i, in a nested dict."""

    length: int = 40

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {
            "x": np.full((3, 2), index, np.float32),
            "deep": {"i": np.int64(index), "even": np.bool_(index % 2 == 0)},
        }


class PlainArrays(Numbers):
    def __getitem__(self, index):
        return np.arange(index, index + 4)


class BadSample(Numbers):
    def __getitem__(self, index):
        if index == 7:
            raise ValueError("bad frame")
        return super().__getitem__(index)


class DamagedFile(Numbers):
    def __getitem__(self, index):
        if index == 7:
            raise DataError("video.mp4 is cut off", "fetch it again")
        return super().__getitem__(index)


class OddShape(Numbers):
    def __getitem__(self, index):
        return {"x": np.zeros(4 if index == 7 else 3)}


class Strings(Numbers):
    def __getitem__(self, index):
        return {"task": "pick up the cup"}


class Surroundings(Numbers):
    """What a worker looks like from inside."""

    def __getitem__(self, index):
        import torch

        preload = sys.modules.get("preflight.data.worker_preload")
        return {
            "jax": np.bool_("jax" in sys.modules),
            "forked_from_preloaded_server": np.bool_(preload is not None and os.getppid() == preload.SERVER_PID),
            "torch_threads": np.int64(torch.get_num_threads()),
            "ignores_sigint": np.bool_(signal.getsignal(signal.SIGINT) == signal.SIG_IGN),
        }


class LargeTemporaries(Numbers):
    """Makes and frees the memory of camera frames, and tells how many page faults that took."""

    def __getitem__(self, index):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        frames = [np.ones(1_000_000, np.uint8) for _ in range(8)]
        frames.clear()
        return {"faults": np.int64(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)}


class Sleepy(Numbers):
    def __getitem__(self, index):
        time.sleep(600)


class Locked(Numbers):
    """Waits for a lock that nobody lets go of."""

    def __getitem__(self, index):
        lock = threading.Lock()
        lock.acquire()
        with lock:
            return super().__getitem__(index)


class SlowToUnpickle(Numbers):
    def __setstate__(self, state):
        self.__dict__.update(state)
        time.sleep(600)


class Suicidal(Numbers):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


class Unpicklable(Numbers):
    def __init__(self):
        super().__init__()
        self.function = lambda: None

    def __getitem__(self, index):
        self.function()
        return super().__getitem__(index)


class Together(Numbers):
    """Gives the samples of a batch together, in torch's convention, and tells how many there were."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"together": np.int64(1)}

    def __getitems__(self, indices):
        return [self[index] | {"together": np.int64(len(indices))} for index in indices]


class BadTogether(BadSample):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class MissingTogether(Numbers):
    def __getitems__(self, indices):
        return [self[index] for index in indices][1:]


@dataclass
class Damaged(Numbers):
    """Some samples cannot be read."""

    bad: tuple[int, ...] = (7,)

    def __getitem__(self, index):
        if index in self.bad:
            raise DataError(f"frame {index} does not decode")
        return super().__getitem__(index)


class Torch(Numbers):
    """Loads torch where it is made and where it is unpickled, as a module that imports it does."""

    def __init__(self):
        super().__init__()
        self.torch = importlib.import_module("torch.utils.data")

    def __getstate__(self):
        return {}

    def __setstate__(self, state):
        self.__init__()


class Augmented(Torch):
    """What a dataset draws from the global generators."""

    def __getitem__(self, index):
        torch = sys.modules["torch"]
        return {"i": np.int64(index), "drawn": np.array([np.random.rand(), random.random(), torch.rand(1).item()])}


class WorkerInfo(Torch):
    def __getitem__(self, index):
        info = self.torch.get_worker_info()
        return np.array([info.id, info.num_workers, info.seed, type(info.dataset) is WorkerInfo])


class Tensors(Numbers):
    def __getitem__(self, index):
        import torch

        return {"x": torch.full((3,), index)}


@dataclass
class Killing(Numbers):
    """Kills its worker at sample 7; with a folder, once only."""

    folder: Path | None = None

    def __getitem__(self, index):
        if index == 7 and not (self.folder and (self.folder / "killed").exists()):
            if self.folder:
                (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class KillingTogether(Killing):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


@dataclass
class Waiting(Numbers):
    """Sample `until` waits until four others have been read."""

    folder: Path = Path()
    until: int = 0

    def __getitem__(self, index):
        if index == self.until:
            while len(list(self.folder.iterdir())) < 4:
                time.sleep(0.01)
        else:
            (self.folder / str(index)).touch()
        return super().__getitem__(index)


class Large(Numbers):
    """Half a MiB, of one value."""

    def __getitem__(self, index):
        return {"x": np.full(1 << 19, index, np.uint8)}


class Growing(Numbers):
    """Sample i has 100 i values."""

    def __getitem__(self, index):
        return {"x": np.full(100 * index, index, np.int64)}


class Libraries(Numbers):
    def __getitem__(self, index):
        return {name: np.bool_(name in sys.modules) for name in ("torch", "jax", "pyarrow.parquet", "av")}


class Exiting(Numbers):
    def __getitem__(self, index):
        os._exit(9)
