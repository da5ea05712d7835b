"""`memory.*`: what the run holds, against what the machine has."""

from __future__ import annotations

from checks import memory_checkpoint, memory_device, memory_workers

CHECKS = (memory_device.CHECK, memory_workers.CHECK, memory_checkpoint.CHECK)
