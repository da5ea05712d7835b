"""Datasets that loader workers import by name."""

import os
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass

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
