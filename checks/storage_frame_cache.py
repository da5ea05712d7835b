"""`storage.frame-cache`: the cache of decoded frames that the run asks for is there, or there is room for it."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from checks import units
from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed
from preflight.runs import command_line
from preflight.training.folder import nearest_existing

if TYPE_CHECKING:
    from preflight.data.frame_cache import FrameCache


def _frame_cache(context: CheckContext) -> Outcome:
    if context.run.source() is None:
        return passed("samples are made up without a dataset: there is nothing to keep")
    cache = getattr(context.run.dataset(), "frame_cache", None)
    if cache is None:
        return passed("the run's own reader makes its samples: it keeps no frames")
    if cache.kind == "off" or not cache.keys:
        return passed("data.cache is off: frames are decoded whenever they are asked for")
    return _in_memory(context, cache) if cache.kind == "memory" else _on_disk(context, cache)


def _in_memory(context: CheckContext, cache: FrameCache) -> Outcome:
    memory = context.probes.memory()
    measured = {
        "cache_gib": round(cache.num_bytes / 2**30, 3),
        "available_gib": round(memory.available_bytes / 2**30, 2),
    }
    summary = (
        f"decoded frames take {units.size(cache.num_bytes)} of shared memory by the end of the first epoch, where "
        f"{units.size(memory.available_bytes)} are available ({memory.source})"
    )
    if cache.num_bytes <= memory.available_bytes:
        return passed(summary, measured=measured)
    return failed(
        summary,
        measured=measured,
        expected={"available_gib": f"at least {measured['cache_gib']}"},
        hint=Hint(text="keep the frames on disk: data.cache=disk; or decode them each time: data.cache=off"),
    )


def _on_disk(context: CheckContext, cache: FrameCache) -> Outcome:
    states = cache.states()
    lacking = [one for one in states if one.state != "ready"]
    measured: dict[str, Any] = {
        "folder": str(cache.folder),
        "cameras": {one.camera: one.state for one in states},
        "cache_gib": round(cache.num_bytes / 2**30, 3),
    }
    cameras = "1 camera" if len(states) == 1 else f"{len(states)} cameras"
    if not lacking:
        return passed(
            f"the decoded frames of {cameras} are in {cache.folder}, {units.size(cache.num_bytes)}: made of the "
            "dataset's files as they are, and the frames that were drawn have their checksums",
            measured=measured,
        )
    need, place = sum(one.num_bytes - one.here_bytes for one in lacking), nearest_existing(cache.folder)
    free = context.probes.disk_free(place)
    measured |= {"to_be_made_gib": round(need / 2**30, 3), "free_gib": round(free / 2**30, 2)}
    evidence = tuple(f"{one.camera} is {one.state}" + (f": {one.why}" if one.why else "") for one in lacking)
    summary = (
        f"the frame cache of {len(lacking)} of {cameras} is to be made when the run starts: {units.size(need)} in "
        f"{cache.folder}, where {units.size(free)} are free"
    )
    elsewhere = Hint(text="name a folder on another disk: data.cache_dir=DIR; or use data.cache=memory or off")
    try:
        with tempfile.TemporaryFile(dir=place):  # which leaves nothing behind
            pass
    except OSError as error:
        why = "is a file" if not place.is_dir() else f"cannot be written: {error.strerror or error}"
        return failed(f"{summary}, but {place} {why}", measured=measured, evidence=evidence, hint=elsewhere)
    if need > free:
        return failed(
            summary,
            measured=measured,
            expected={"free_gib": f"at least {measured['to_be_made_gib']}"},
            evidence=evidence,
            hint=elsewhere,
        )
    return passed(f"{summary}; before it, `{command_line(context.run.facts, 'cache')}`", measured=measured,
                  evidence=evidence)  # fmt: skip


CHECK = Check(
    id="storage.frame-cache",
    title="There is room for the frame cache",
    level="standard",
    severity="fail",
    requires=("data.features", "data.norm-stats"),
    timeout_s=120,
    run=_frame_cache,
    doc="Where the run keeps decoded frames (data.cache), looks whether it can. In memory: what all frames of the "
    "run's cameras take against the memory that is available. On disk: whether each camera's cache is there, was made "
    "of the dataset's files as they are now by the decoder that is installed now, and frames drawn from it have their "
    "checksums; what is absent, stale or damaged is made anew when the run starts, so its size is held against the "
    "space that is free, and the folder must be writable. Nothing is built here.",
)
