"""What keeps loading from being faster, and what to do about it: a pure function of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.attribution import COLLATE, TRANSFER, Attribution
from bench.disk import Mount

if TYPE_CHECKING:
    from bench.results import PointResult

# The parent's part is serial. When it takes this much of the time, no number of workers gets past it by half.
_PARENT_BUSY = 0.7
# The workers and the parent together keep the CPUs busy, or workers stand in line for one for this share of their time.
_CPUS_BUSY = 0.85
_IN_LINE = 0.2
# Reading from a disk is what workers wait for where at least this much comes from it, or CPUs idle for its sake.
_DISK_MIB_PER_S = 1.0
_IOWAIT_CORES = 0.2

_REENCODE = (
    "Re-encode the videos with a key frame every second frame (ffmpeg -g 2), at the size that the model sees: then a "
    "random frame costs two decoded ones at most, and small ones"
)
_ADVICE: dict[str, tuple[str, ...]] = {
    "decode": (
        _REENCODE,
        "Leave out cameras that the model does not see",
        "Store decoded frames at the model's size (dtype image) where the disk has room",
    ),
    "read": (
        "Put the frame cache on a local NVMe disk (data.cache_dir), or into memory (data.cache=memory)",
        "More CPU cores; kept frames are copied, not decoded",
    ),
    "transform": (
        "Do once for all samples what does not change between epochs: store pictures at the model's size",
        "Replace loops over pixels or actions by numpy operations on whole arrays",
    ),
    COLLATE: (
        "Make samples smaller: uint8 pictures in place of float32, fewer and larger arrays in place of many small ones",
    ),
    "sample": ("Find out what making a sample spends its time on: py-spy record on a worker, or profile dataset[i]",),
    "cpu": (
        "More CPU cores; more workers than cores load no faster",
        "Less work for each sample: profile dataset[i]",
    ),
    "parent": (
        "Make batches cheaper to receive: fewer and larger arrays, uint8 pictures in place of float32",
        "Let nothing else work in the process that trains: its threads share one interpreter lock",
    ),
    "disk": (
        "Put the dataset on a local NVMe disk, or give the machine enough RAM for its page cache to hold the dataset",
        "More workers, since waiting overlaps, as long as the disk has more to give",
    ),
    "network-fs": (
        "Copy the dataset to a local disk before the run",
        "More workers, since waiting overlaps, as long as the network has more to give",
    ),
    "waiting": (
        "More workers, since waiting overlaps",
        "Find out what a sample waits for (a lock, a service, a remote store): py-spy dump on a worker",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """What limits the fastest point that was measured."""

    name: str  # a key of _ADVICE, or a stage that the dataset itself named
    sentence: str
    advice: tuple[str, ...]  # the most promising first
    cache: str | None = None  # of it, the one to keep decoded frames

    def __str__(self) -> str:
        return f"{self.name}. {self.sentence} {self.advice[0]}."


def bottleneck(
    points: Sequence[PointResult],
    attribution: Attribution,
    *,
    usable_cpus: float,
    mount: Mount | None = None,
    cache: str | None = None,
) -> Bottleneck:
    """Names what limits the fastest point with workers, or loading in the process where that alone was measured.

    The rules, the first that holds:

    1. ``parent``: receiving batches takes the parent 70 % of the time or more, by its CPU time while it was measured
       or by what the attribution says of batches that are ready.
    2. Of a worker's time, that in line for a CPU left out, the largest part decides: each stage's CPU time in
       proportion to its share in the attribution, or waiting, which is all that is not CPU time. Waiting is
       ``network-fs`` where the dataset lies on one, ``disk`` where bytes come from a block device, else ``waiting``.
    3. A stage that cannot be divided ("sample") is ``cpu`` where all usable CPUs are busy or workers queue for them.

    Args:
        points: At least one.
        attribution: Of the same dataset.
        usable_cpus: Of this process.
        mount: The file system of the dataset, where known.
        cache: What `bench.cache_offer` says; it is advised where decoding limits.
    """
    with_workers = [point for point in points if point.num_workers > 0]
    point = max(with_workers or points, key=lambda point: point.samples_per_s.median)
    if with_workers and _parent_share(point, attribution) >= _PARENT_BUSY:
        return _parent(point, attribution)
    waiting = _waiting_share(point, attribution, usable_cpus)
    cpu_s = sum(stage.cpu_s for stage in attribution.in_worker) or 1.0
    stage = max(attribution.in_worker, key=lambda stage: stage.cpu_s)
    if waiting > (1 - waiting) * stage.cpu_s / cpu_s:
        return _waiting(point, waiting, mount)
    starved = _starved(point, usable_cpus)
    name = "cpu" if stage.name == "sample" and starved else stage.name
    what = {
        "decode": "Reading and decoding frames",
        "read": "Reading kept frames",
        "sample": "Making samples",
        COLLATE: "Collating",
    }
    sentence = (
        f"{what.get(stage.name, f'The stage {stage.name!r}')} takes {stage.cpu_s / cpu_s:.0%} of the CPU time of a "
        f"sample ({_milliseconds(stage.cpu_s)} of {_milliseconds(cpu_s)})"
    )
    advice = _ADVICE.get(name, _ADVICE["transform"])
    offered = cache if name == "decode" else None
    if offered is not None:
        advice = (offered, *advice)
    if starved:
        sentence += f", and {_all_cpus(point, usable_cpus)}."
    else:
        sentence += "."
        if point.num_workers < int(usable_cpus):
            advice = (_more_workers(point, usable_cpus), *advice)
    return Bottleneck(name=name, sentence=sentence, advice=advice, cache=offered)


def _parent_share(point: PointResult, attribution: Attribution) -> float:
    """Share of the time that the parent's own part takes, at least."""
    ready = next((stage.wall_s for stage in attribution.stages if stage.name == TRANSFER), 0.0)
    return max(point.consumer_share or 0.0, point.samples_per_s.median * ready)


def _parent(point: PointResult, attribution: Attribution) -> Bottleneck:
    share = min(1.0, _parent_share(point, attribution))
    rate = point.samples_per_s.median
    return Bottleneck(
        name="parent",
        sentence=(
            f"Receiving batches takes the training process {share:.0%} of the time ({_milliseconds(share / rate)} a "
            f"sample), and it does that alone: {rate / share:,.0f} samples/s is the most, whatever the number of "
            "workers."
        ),
        advice=_ADVICE["parent"],
    )


def _waiting_share(point: PointResult, attribution: Attribution, usable_cpus: float) -> float:
    if not point.num_workers:
        return attribution.waiting_share
    # Where nothing is known of the line for the CPUs, nobody can compute on more CPUs than there are.
    able = min(point.num_workers, usable_cpus) if point.cpu_queued_cores is None else point.num_workers
    able = max(able - (point.cpu_queued_cores or 0.0), point.cpu_cores_used, 1e-9)
    return 1 - point.cpu_cores_used / able


def _waiting(point: PointResult, share: float, mount: Mount | None) -> Bottleneck:
    who = _workers(point.num_workers)
    sentence = f"{who[0].upper()}{who[1:]} {'wait' if point.num_workers > 1 else 'waits'} for {share:.0%} of the time"
    read = point.disk_read_mib_per_s or 0.0
    disk = read >= _DISK_MIB_PER_S or (read > 0 and (point.iowait_cores or 0.0) >= _IOWAIT_CORES)
    if mount is not None and mount.is_network:
        name, sentence = "network-fs", f"{sentence}; the dataset lies on {mount}."
    elif disk:
        name = "disk"
        place = f" from {mount}" if mount else ""
        sentence += f"; {read:,.0f} MiB/s are read{place}, {read / point.samples_per_s.median:.2g} MiB a sample."
    else:
        name, sentence = "waiting", f"{sentence}, neither on a CPU nor reading from a disk of this machine."
    return Bottleneck(name=name, sentence=sentence, advice=_ADVICE[name])


def _starved(point: PointResult, usable_cpus: float) -> bool:
    return _busy_cpus(point) >= _CPUS_BUSY * usable_cpus or _in_line(point) >= _IN_LINE


def _busy_cpus(point: PointResult) -> float:
    return point.cpu_cores_used + (point.consumer_share or 0.0)


def _in_line(point: PointResult) -> float:
    return (point.cpu_queued_cores or 0.0) / max(1, point.num_workers)


def _all_cpus(point: PointResult, usable_cpus: float) -> str:
    if _busy_cpus(point) >= _CPUS_BUSY * usable_cpus:
        cpus = "the only usable CPU" if usable_cpus == 1 else f"all {usable_cpus:g} usable CPUs"
        return f"{cpus} {'is' if usable_cpus == 1 else 'are'} busy"
    return (
        f"{_workers(point.num_workers)} stood in line for a CPU for {_in_line(point):.0%} of the time, since something "
        f"else took what {usable_cpus:g} usable CPUs had"
    )


def _more_workers(point: PointResult, usable_cpus: float) -> str:
    use = "use" if point.num_workers > 1 else "uses"
    who = _workers(point.num_workers)
    return f"More workers: {who} {use} {point.cpu_cores_used:.1f} of {usable_cpus:g} usable CPUs"


def _workers(number: int) -> str:
    return {0: "this process", 1: "1 worker"}.get(number, f"{number} workers")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
