"""Tests run strict: no network, warnings are errors, rank promotion raises, shapes are checked, two CPU devices."""

import os
import signal
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

_CACHE = Path(__file__).parent.parent / ".pytest_cache"
# Before jax is imported: two devices show sharding mistakes without a GPU.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
os.environ["JAX_PLATFORMS"] = "cpu"
# Two virtual devices on few cores can wait for each other for ever when several steps are in flight.
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "0"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)

# A shell that runs the tests in the background lets them ignore Ctrl-C, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Else every process that a test starts would compile torch's, jax's and LeRobot's sources anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What is expensive is made once and shared by all tests, the processes they start, and the next run.
os.environ["PREFLIGHT_CACHE"] = str(_CACHE / "preflight")
# A toy's step compiles for longer than it runs: LLVM leaves out what makes code fast, and XLA the way to it that takes
# longest (jax 0.10.2: 3.4 s for pi0's toy, in place of 13). Commands are run as users have them, see command.py.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if tuple(map(int, metadata.version("jax").split(".")[:2])) >= (0, 10):  # XLA ends a process that has an unknown flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
if metadata.version("jax").startswith("0.5."):
    # openpi's jaxlib 0.5.3 on the CPU: a train step read from the cache crashes on one device, waits for ever on two.
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
else:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE / "jax")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import pytest
from jaxtyping import install_import_hook

# Shapes and dtypes at the public boundaries of what runs on the device. Not beside openpi: it makes jaxtyping read all
# its callers' source for each dataclass that it checks: seconds for a model's parameters.
for package in ("preflight.models", "preflight.training"):
    if package in sys.modules:
        raise RuntimeError(f"{package} was imported before its types could be checked")
if find_spec("openpi") is None:
    install_import_hook(["preflight.models", "preflight.training"], "beartype.beartype")


@pytest.fixture(scope="session")
def lerobot():
    """The module where the installed LeRobot keeps its datasets, not imported; without one, the test is skipped."""
    found = find_spec("lerobot")
    for folder in (found and found.submodule_search_locations) or ():
        for name in ("datasets", "common/datasets"):
            if (Path(folder) / name / "lerobot_dataset.py").is_file():
                return f"lerobot.{name.replace('/', '.')}"
    pytest.skip("LeRobot is not installed; beside openpi's pins: make test-openpi-pins LEROBOT=DIR")
