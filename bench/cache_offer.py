"""What a frame cache would cost and save, for a dataset that has one and does not use it."""

from __future__ import annotations

from typing import Any

from bench.attribution import Attribution
from bench.worker_limits import size_text

_DECODE = "decode"


def cache_offer(dataset: Any, attribution: Attribution) -> str | None:
    """The advice to keep decoded frames, with its figures.

    Args:
        dataset: One with a `frame_cache` (`preflight.data.frame_cache.FrameCache`); none needs to have it.
        attribution: Of the dataset, decoding.

    Returns:
        A sentence without its full stop; None where there is no such cache, it is in use or nothing is decoded.
    """
    cache = getattr(dataset, "frame_cache", None)
    decode = next((stage for stage in attribution.in_worker if stage.name == _DECODE), None)
    if cache is None or decode is None or not cache.keys or cache.is_open:
        return None
    from preflight.data.frame_cache import free_bytes
    from preflight.telemetry.memory import available_memory

    free, memory = free_bytes(cache.folder), available_memory().available_bytes
    total = sum(stage.cpu_s for stage in attribution.in_worker)
    cameras = "1 camera" if len(cache.keys) == 1 else f"{len(cache.keys)} cameras"
    saved = (
        f"decoding takes {decode.cpu_s * 1e3:.3g} of the {total * 1e3:.3g} ms of CPU time of a sample, and is done once"
    )
    where = f"{size_text(cache.num_bytes)} for {cameras}"
    if cache.num_bytes <= free:
        also = ", or data.cache=memory, filled by the first epoch" if cache.num_bytes <= memory else ""
        return f"Keep decoded frames: data.cache=disk ({where}, {size_text(free)} free){also}; {saved}"
    if cache.num_bytes <= memory:
        return f"Keep decoded frames: data.cache=memory ({where}, {size_text(memory)} available); {saved}"
    return (
        f"Keep decoded frames on a larger disk: data.cache=disk with data.cache_dir ({where}; {cache.folder} has "
        f"{size_text(free)}); {saved}"
    )
