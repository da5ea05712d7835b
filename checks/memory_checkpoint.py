"""`memory.checkpoint`: the host's RAM while a checkpoint is saved."""

from __future__ import annotations

import dataclasses
import re

from checks import units
from checks.context import CheckContext, visible_gpus, with_settings
from checks.trace import StateBytes, state_bytes
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped, warned
from preflight.telemetry.targets import known_as
from preflight.training.folder import save_steps

_GIB = 2**30

# RAM that a save takes beside what the run holds, as multiples of the checkpoint's bytes.
# The whole state is copied off the device before the first byte is written: Orbax bounds neither the copy (its
# save_device_host_concurrent_bytes is None) nor, below 96 GB, what it writes at once.
_COPY = 1.0
# "Saving a 4GB array [...] can require up to 14GB of RAM" (google/orbax#1640). Measured here over twelve saves of
# 0.5 GiB, with the copy that preflight makes on a CPU: 1.9 at the first save, 3.5 at the eleventh with Orbax 0.12.8 and
# 2.8 with 0.11.13 (jax 0.10.2 and 0.5.3, glibc 2.36, 2 cores, 2026-11-23). What stays after each save is the C
# library's: each of the writing threads has an arena of its own and keeps what it frees.
_MANY_ARENAS = 3.5
# The same saves with MALLOC_ARENA_MAX=2, at most 1.92: the copy and the compressed chunks, nothing kept.
_FEW_ARENAS = 2.0
_ARENAS = "MALLOC_ARENA_MAX"

# google/orbax#2090: on a GPU "0.11.8 works", 0.11.19 leaks, with transfers through pinned memory in its log; by the
# changelog and the tagged sources, 0.11.14 is the first that makes them by default.
_FIRST_LEAKING, _LAST_LEAKING = (0, 11, 14), (0, 11, 19)
# A leak of a share of the state needs some saves to matter; openpi's defaults make 30.
_MANY_SAVES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Room:
    """What a save may take of the host's RAM; in bytes."""

    available: int  # after the workers, and without a GPU after the state itself
    source: str
    workers: int | None  # what the loader's workers were measured to take; None: not measured yet
    on_gpu: bool  # whether the state lies on a GPU rather than in this RAM


def _checkpoint(context: CheckContext) -> Outcome:
    size = state_bytes(context)
    most = _most(context)
    takes = f"a save takes {_between(size.checkpoint, most)} of RAM"
    gpus, target = visible_gpus(context), context.target
    if target is not None and not any(known_as(gpu.name) == target.spec for gpu in gpus):
        return skipped(
            f"how much RAM goes with {target} is not known: {takes} beside what the run holds",
            measured=_measured(context, size, most),
        )
    room = _room(context, size, on_gpu=bool(gpus))
    if room.available < 0:
        return skipped(f"without a GPU the state itself lies in RAM, where it does not fit (memory.device); {takes}")
    measured = _measured(context, size, most) | {
        "available_gib": round(room.available / _GIB, 2),
        "workers_gib": None if room.workers is None else round(room.workers / _GIB, 2),
    }
    summary = f"{takes}, of {units.size(room.available)} ({_what_is_left(context, room)})"
    if size.checkpoint * _COPY > room.available:
        return failed(
            f"no checkpoint can be saved: {summary}",
            measured=measured,
            expected={"available_gib": f"at least {size.checkpoint * _COPY / _GIB:.1f}"},
            evidence=_evidence(size),
            hint=_make_room(context, size, room, int(size.checkpoint * _COPY)),
        )
    if size.checkpoint * most > room.available:
        return warned(
            f"saves may run out of RAM: {summary}",
            measured=measured,
            expected={"available_gib": f"at least {size.checkpoint * most / _GIB:.1f}"},
            evidence=_evidence(size),
            hint=_save_with_less(context, size, room),
        )
    version, saves = _orbax_version(), len(save_steps(context.run.facts))
    if gpus and _leaks(version) and saves >= _MANY_SAVES:
        return warned(
            f"RAM may grow with each of {saves} saves: on a GPU, Orbax {version} was reported to leak; {summary}",
            measured=measured,
            expected={"orbax": "not 0.11.14 to 0.11.19"},
            hint=Hint(
                text="another version of Orbax (0.11.8 was reported to be fine, and 0.11.13, which openpi pins, does "
                "not use pinned memory either), or fewer saves",
                commands=_fewer_saves(context),
                url="https://github.com/google/orbax/issues/2090",
            ),
        )
    return passed(summary, measured=measured)


def _most(context: CheckContext) -> float:
    """The most that a save has been seen to take, as a multiple of the checkpoint."""
    arenas = context.probes.environ.get(_ARENAS, "")
    bounded = arenas.isdecimal() and 1 <= int(arenas) <= 2
    # What one save leaves behind is of consequence to the next only; the native stack's loop gives it back in between.
    ours = context.run.facts.stack == "native"
    return _FEW_ARENAS if bounded or ours or len(save_steps(context.run.facts)) == 1 else _MANY_ARENAS


def _room(context: CheckContext, size: StateBytes, *, on_gpu: bool) -> _Room:
    memory, workers = context.probes.memory(), _workers_bytes(context)
    held = 0 if on_gpu else size.total
    return _Room(
        available=memory.available_bytes - (workers or 0) - held,
        source=memory.source,
        workers=workers,
        on_gpu=on_gpu,
    )


def _workers_bytes(context: CheckContext) -> int | None:
    """What the loader's workers take, where `memory.workers` has measured it by now; no sweep is started for this."""
    from bench.results import SweepResult

    sweep = context._made.get("loader-sweep")
    if not isinstance(sweep, SweepResult):
        return None
    wanted = context.run.facts.num_workers
    own = next((point for point in sweep.points if point.num_workers == wanted), None)
    return None if own is None or own.workers_mib is None else int(own.workers_mib * 2**20)


def _orbax_version() -> str:
    from importlib import metadata

    return metadata.version("orbax-checkpoint")


def _leaks(version: str) -> bool:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return found is not None and _FIRST_LEAKING <= tuple(map(int, found.groups())) <= _LAST_LEAKING


def _between(checkpoint: int, most: float) -> str:
    return f"{units.size(checkpoint * _COPY)} to {units.size(checkpoint * most)}"


def _what_is_left(context: CheckContext, room: _Room) -> str:
    taken = [] if room.on_gpu else ["the state"]
    if room.workers is not None:
        taken.append(f"{context.run.facts.num_workers} workers")
    uncounted = f"; {context.run.facts.num_workers} workers not counted"
    return (
        room.source
        + (f" without {' and '.join(taken)}" if taken else "")
        + (uncounted if room.workers is None and context.run.facts.num_workers else "")
    )


def _measured(context: CheckContext, size: StateBytes, most: float) -> dict[str, object]:
    return {
        "checkpoint_gib": round(size.checkpoint / _GIB, 2),
        "least_gib": round(size.checkpoint * _COPY / _GIB, 2),
        "most_gib": round(size.checkpoint * most / _GIB, 2),
        "saves": len(save_steps(context.run.facts)),
        "orbax": _orbax_version(),
    }


def _evidence(size: StateBytes) -> tuple[str, ...]:
    parts = {"parameters": size.parameters, "optimizer": size.optimizer, "ema": size.ema}
    return tuple(f"{name:<12} {units.size(part):>10}" for name, part in parts.items())


def _make_room(context: CheckContext, size: StateBytes, room: _Room, needed: int) -> Hint:
    """What brings the least that a save takes below what there is: only what is computed to do so."""
    missing = needed - room.available
    texts: list[str] = []
    commands: list[str] = []
    # On a GPU the average is in the checkpoint alone; without one it also lies in the RAM itself.
    if size.ema * (1 if room.on_gpu else 2) >= missing and size.ema:
        texts.append(f"no moving average ({units.size(size.ema)} less in each checkpoint)")
        commands += with_settings(context, "ema_decay=none")
    workers = context.run.facts.num_workers
    if room.workers is not None and room.workers > missing and workers > 1:
        fewer = max(1, int(workers * (1 - missing / room.workers)))
        if room.workers * (workers - fewer) / workers >= missing:
            texts.append(f"fewer workers (all {workers} take {units.size(room.workers)})")
            commands += with_settings(context, f"num_workers={fewer}")
    least = units.size(context.probes.memory().available_bytes + missing)
    rest = f"a host with {least} of RAM free; the last step is saved too, so saving less often does not help"
    return Hint(
        text="; or ".join(["it fits with " + " or with ".join(texts), rest] if texts else [rest]),
        commands=tuple(commands),
    )


def _save_with_less(context: CheckContext, size: StateBytes, room: _Room) -> Hint:
    """What lowers the most that a save takes."""
    facts = context.run.facts
    texts: list[str] = []
    commands: list[str] = []
    if _most(context) == _MANY_ARENAS:
        fits = " (which fits)" if size.checkpoint * _FEW_ARENAS <= room.available else ""
        texts.append(
            f"{_ARENAS}=2, also for the training itself, which keeps glibc from holding on to what was freed: measured "
            f"{_between(size.checkpoint, _FEW_ARENAS)}{fits}"
        )
        commands.append(f"{_ARENAS}=2 {with_settings(context)[0]}")
    if size.ema:
        texts.append(f"no moving average ({units.size(size.ema)} less in each checkpoint)")
        commands += with_settings(context, "ema_decay=none")
    if facts.num_workers > 1:
        texts.append("fewer workers")
        commands += with_settings(context, f"num_workers={facts.num_workers // 2}")
    if len(save_steps(facts)) > 2:
        texts.append("fewer saves, each of which adds to what is kept")
        commands += _fewer_saves(context)
    return Hint(text="; ".join(texts) or "a host with more RAM", commands=tuple(commands))


def _fewer_saves(context: CheckContext) -> tuple[str, ...]:
    facts = context.run.facts
    interval = min(2 * facts.save_interval, facts.num_train_steps)
    # Checkpoints are kept at multiples of keep_period that are saved at all.
    keep = () if facts.keep_period is None or facts.keep_period % interval == 0 else (f"keep_period={interval}",)
    return with_settings(context, f"save_interval={interval}", *keep)


CHECK = Check(
    id="memory.checkpoint",
    title="Checkpoints can be saved within the host's RAM",
    level="standard",
    severity="fail",
    requires=("config.model",),
    failures=("F01", "F02"),
    timeout_s=180,
    run=_checkpoint,
    doc="A run whose host runs out of RAM during a save vanishes at that step without a traceback (openpi#755 at step "
    "1000, openpi#827, openpi#490: 'The memory is full, and a minimum of 48G is required'). The bytes of a checkpoint "
    "are exact, from the traced shapes. One copy of them leaves the device before anything is written: where that does "
    "not fit into MemAvailable and the cgroup's limit, nothing can be saved. The upper figure, 3.5 times the bytes, is "
    "google/orbax#1640 ('Saving a 4GB array [...] can require up to 14GB of RAM'), and what twelve saves took with "
    "Orbax 0.12.8 on a CPU here (0.11.13: 2.8). The first save took 1.9; the rest is what glibc keeps of freed memory "
    "in an arena for each writing thread, which looks like the leak of openpi#721 ('after each model checkpoint is "
    "saved, a portion of the CPU RAM is not released'). With MALLOC_ARENA_MAX=2 every save took 1.9, and nothing was "
    "kept. On a GPU this was not measured. There, Orbax from 0.11.14 on copies through pinned memory by default, and "
    "google/orbax#2090 reports of 0.11.19 that 'RAM (not VRAM) grows rapidly and indefinitely' where 'version 0.11.8 "
    "works': many saves with 0.11.14 to 0.11.19 are warned of. No thread says which version mends it, nor that a later "
    "one still leaks. What the loader's workers take is subtracted where memory.workers has measured it by then. With "
    "--target and no such GPU here, the RAM of that machine is not known, and the check is skipped with the figures.",
)
