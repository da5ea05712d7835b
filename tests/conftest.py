"""Tests run strict: no network, warnings are errors, rank promotion raises, shapes are checked, two CPU devices."""

import os
import signal
import sys
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

# What is expensive is made once and shared by all tests, the processes they start, and the next run.
os.environ["PREFLIGHT_CACHE"] = str(_CACHE / "preflight")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

from jaxtyping import install_import_hook

# Shapes and dtypes at the public boundaries of what runs on the device.
for package in ("preflight.models", "preflight.training"):
    if package in sys.modules:
        raise RuntimeError(f"{package} was imported before its types could be checked")
install_import_hook(["preflight.models", "preflight.training"], "beartype.beartype")
