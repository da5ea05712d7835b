import json
import os
import time
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from healthy import context

import bench
from bench.attribution import Attribution, Stage, attribute
from bench.bottleneck import Bottleneck, bottleneck
from bench.cpu_time import iowait_seconds, queued_seconds
from bench.disk import Mount
from bench.known_datasets import Busy, FailsAt, Latency, Staged, StagedTogether
from bench.notes import notes
from bench.results import PointResult
from bench.statistics import Estimate
from preflight.data.loader import BatchLoader
from preflight.errors import DataError
from preflight.telemetry.cpus import usable_cpus

SCHEMA = json.loads(resources.files("bench").joinpath("bench_loader.schema.json").read_text())
SHORT: dict[str, Any] = {"batch_size": 4, "max_seconds": 0.8, "rounds": 1, "attribution_s": 0.6}


def costs(found: Attribution) -> dict[str, Stage]:
    return {stage.name: stage for stage in found.stages}


def named(result: bench.SweepResult) -> str:
    assert result.bottleneck is not None
    return result.bottleneck.name


def test_stages_have_the_shares_that_the_dataset_gives_them() -> None:
    found = attribute(Staged(decode_s=0.009, transform_s=0.003), batch_size=4, seconds=0.8)
    assert [stage.name for stage in found.stages] == ["decode", "transform", "collate", "transfer"]
    assert [stage.where for stage in found.stages] == ["worker", "worker", "worker", "parent"]
    stages = costs(found)
    assert stages["decode"].cpu_s == pytest.approx(0.009, rel=0.2)
    assert stages["decode"].cpu_s / stages["transform"].cpu_s == pytest.approx(3, rel=0.2)
    assert stages["collate"].cpu_s < stages["transform"].cpu_s
    for stage in found.stages:
        assert 0 <= stage.waited_s <= stage.wall_s


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_decoded_together_is_timed_together(workers: int) -> None:
    dataset = StagedTogether(decode_s=0.02, transform_s=0.001)
    found = attribute(dataset, batch_size=8, num_workers=workers, seconds=0.4)
    stages = costs(found)
    assert stages["decode"].cpu_s == pytest.approx(0.02 / 8, rel=0.2)
    assert stages["transform"].cpu_s == pytest.approx(0.001, rel=0.3)
    assert found.num_samples % 8 == 0
    assert found.how.startswith(f"{found.num_samples} samples made in batches of 8 by one process alone")


class Windowed(StagedTogether):
    """Its order is its own, and other samples cannot be read."""

    def batch_order(self, batch_size: int, seed: int) -> Any:
        return lambda batch: np.arange(batch_size) + 100

    def _decode(self, index: int) -> int:
        if index != 100:
            raise ValueError(f"{index} was not asked for")
        return index


def test_batches_are_timed_in_the_datasets_own_order() -> None:
    found = attribute(Windowed(decode_s=0.0, transform_s=0.001), batch_size=8, num_workers=0, seconds=0.1)
    assert costs(found)["transform"].cpu_s == pytest.approx(0.001, rel=0.3)


def test_waiting_is_told_from_computing() -> None:
    waiting = attribute(Latency(0.01), batch_size=4, num_workers=0, seconds=0.4)
    computing = attribute(Busy(0.01), batch_size=4, num_workers=0, seconds=0.4)
    assert [stage.name for stage in waiting.stages] == ["sample", "collate"]
    assert costs(waiting)["sample"].wall_s >= 0.01
    assert costs(waiting)["sample"].cpu_s < 0.003
    assert costs(computing)["sample"].cpu_s >= 0.01
    assert waiting.waiting_share > 0.7 > 0.3 > computing.waiting_share


def test_collating_is_timed_for_each_sample_of_a_batch() -> None:
    """Sixteen times the batch is as many times the work; a sample's share stays about what it is."""
    small, large = (
        costs(attribute(Picture(), batch_size=size, num_workers=0, seconds=0.3))["collate"] for size in (8, 128)
    )
    assert small.cpu_s / 4 < large.cpu_s < small.cpu_s * 4


class Picture(Latency):
    """A picture that is there at once."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": np.full(1 << 16, index % 251, np.uint8)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_fails_is_named(workers: int) -> None:
    with pytest.raises(DataError, match=r"sample 3 cannot be loaded: .*frame 3 is torn"):
        attribute(FailsAt(3, length=8), batch_size=4, num_workers=workers, seconds=0.4)


def test_a_dataset_that_waits_is_bound_by_waiting() -> None:
    result = bench.sweep(Latency(0.02), workers=(2,), **SHORT)
    assert named(result) == "waiting"
    assert "2 workers wait for " in result.bottleneck.sentence  # type: ignore[union-attr]


def test_more_busy_workers_than_cpus_are_bound_by_the_cpu() -> None:
    result = bench.sweep(Busy(0.01), workers=(int(2 * usable_cpus().count) + 1,), **SHORT)
    assert named(result) == "cpu"
    assert result.bottleneck.advice[0] == "More CPU cores; more workers than cores load no faster"  # type: ignore[union-attr]


@pytest.mark.parametrize(("decode_s", "transform_s", "name"), [(0.01, 0.002, "decode"), (0.002, 0.01, "transform")])
def test_the_dearer_stage_is_named(decode_s: float, transform_s: float, name: str) -> None:
    result = bench.sweep(Staged(decode_s=decode_s, transform_s=transform_s), workers=(1,), **SHORT)
    assert named(result) == name


class SlowToReceive(BatchLoader):
    """A loader whose parent computes for 50 ms on each batch that it takes."""

    def __next__(self) -> Any:
        batch = super().__next__()
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        return batch


def test_a_parent_that_unpacks_slowly_is_named_with_its_ceiling() -> None:
    result = bench.sweep(Latency(0.0005), workers=(2,), loader=SlowToReceive, **SHORT)
    assert named(result) == "parent"
    (point,) = result.points
    assert point.consumer_share is not None
    assert point.consumer_share > 0.3
    # 4 samples in 50 ms; on a busy machine in more.
    assert point.samples_per_s.median < 81
    assert result.attribution is not None
    assert costs(result.attribution)["transfer"].cpu_s >= 0.005


def test_the_result_is_the_documented_json_and_has_its_lines() -> None:
    result = bench.sweep(Staged(decode_s=0.01, transform_s=0.001), workers=(0,), **SHORT)
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    jsonschema.validate(document, SCHEMA)
    assert document["attribution"]["bottleneck"] == "decode"
    assert [stage["name"] for stage in document["attribution"]["stages"]] == ["decode", "transform", "collate"]
    lines = notes(result)
    assert lines[0].startswith("Stages, samples/s of one worker: decode ")
    assert lines[1].startswith("Bottleneck: decode. Reading and decoding frames takes ")


def test_without_attribution_nothing_is_named() -> None:
    result = bench.sweep(Latency(0.0), batch_size=4, workers=(0,), max_seconds=0.8, rounds=1)
    assert (result.attribution, result.bottleneck, result.to_json()["attribution"]) == (None, None, None)
    assert notes(result) == []


def test_time_in_line_for_a_cpu_is_summed_over_threads(tmp_path: Path) -> None:
    for pid, thread, text in ((7, 7, "9 2000000000 5"), (7, 8, "9 500000000 5"), (9, 9, None)):
        folder = tmp_path / str(pid) / "task" / str(thread)
        folder.mkdir(parents=True)
        if text:
            (folder / "schedstat").write_text(text)
    assert queued_seconds([7], proc=tmp_path) == 2.5
    assert queued_seconds([7, 12345], proc=tmp_path) == 2.5  # gone in between
    assert queued_seconds([7, 9], proc=tmp_path) is None  # the kernel does not count it
    (tmp_path / "stat").write_text("cpu  1 2 3 4 250 6 7 8 0 0\ncpu0 1 2 3 4 250 6 7 8 0 0\n")
    assert iowait_seconds(proc=tmp_path) == 250 / os.sysconf("SC_CLK_TCK")
    assert iowait_seconds(proc=tmp_path / "nothing") is None


# The rules, on figures as they are measured: some of them need a disk, a network or more CPUs than a test has.


def figures(num_workers: int, cores: float, **more: float | None) -> PointResult:
    return PointResult(
        num_workers=num_workers,
        samples_per_s=Estimate(100.0, 98.0, 102.0),
        batch_interval_s={"p50": 0.01, "p95": 0.02, "p99": 0.03},
        first_batch_s=1.0,
        cpu_cores_used=cores,
        pss_mib=100.0,
        uss_mib=50.0,
        growth_per_min_mib=None,
        growth_error_mib=None,
        queued_mib=0.0,
        parent_mib=500.0,
        intervals_s=((0.01, 0.02),),
        **{"cpu_queued_cores": 0.0, "consumer_share": 0.05, **more},  # type: ignore[arg-type]
    )


def stages(**cpu_ms: float) -> Attribution:
    found = [
        Stage(name=name, wall_s=ms / 1e3, cpu_s=ms / 1e3, queued_s=0.0, where=where(name))
        for name, ms in cpu_ms.items()
    ]
    return Attribution(stages=tuple(found), num_samples=100, how="made up")


def where(name: str) -> str:
    return "parent" if name == "transfer" else "worker"


DECODING = stages(decode=9.0, transform=0.5, collate=0.5, transfer=0.05)
SAMPLING = stages(sample=9.0, collate=1.0, transfer=0.05)
NFS, DISK = Mount("nfs4", "server:/export", "/data"), Mount("ext4", "/dev/sda1", "/")


@pytest.mark.parametrize(
    ("point", "attribution", "mount", "name", "part"),
    [
        (figures(4, 3.9), DECODING, None, "decode", "takes 90% of the CPU time of a sample (9 ms of 10 ms)."),
        (figures(8, 7.6), DECODING, None, "decode", "and all 8 usable CPUs are busy."),
        (figures(4, 1.0, cpu_queued_cores=2.9), DECODING, NFS, "decode", "4 workers stood in line for a CPU for 72%"),
        (figures(8, 7.6), SAMPLING, None, "cpu", "all 8 usable CPUs are busy"),
        (figures(4, 3.9), SAMPLING, None, "sample", "Making samples takes 90%"),
        (figures(4, 3.9), stages(sample=1.0, collate=9.0), None, "collate", "Collating takes 90%"),
        (figures(4, 3.9), stages(augment=9.0, collate=1.0), None, "augment", "The stage 'augment' takes 90%"),
        (figures(4, 0.8, disk_read_mib_per_s=50.0), DECODING, DISK, "disk", "50 MiB/s are read from /dev/sda1 (ext4)"),
        (figures(4, 0.8, disk_read_mib_per_s=0.5, iowait_cores=0.9), DECODING, None, "disk", "4 workers wait for 80%"),
        (figures(4, 0.8, disk_read_mib_per_s=0.0, iowait_cores=0.9), DECODING, DISK, "waiting", "neither on a CPU"),
        (figures(4, 0.8), DECODING, NFS, "network-fs", "the dataset lies on server:/export (nfs4)."),
        (figures(4, 3.9), DECODING, NFS, "decode", "takes 90%"),
        (figures(4, 1.0, consumer_share=0.8), DECODING, NFS, "parent", "125 samples/s is the most"),
        (figures(4, 1.0), stages(decode=9.0, transfer=8.0), None, "parent", "80% of the time (8 ms a sample)"),
        (figures(16, 7.8, cpu_queued_cores=None), DECODING, None, "decode", "all 8 usable CPUs are busy"),
    ],
)  # fmt: skip
def test_rules(point: PointResult, attribution: Attribution, mount: Mount | None, name: str, part: str) -> None:
    found = bottleneck([point], attribution, usable_cpus=8, mount=mount)
    assert (found.name, part in found.sentence) == (name, True), found
    assert found.advice


def test_more_workers_are_advised_only_while_cpus_are_free() -> None:
    def first_advice(point: PointResult) -> str:
        return bottleneck([point], DECODING, usable_cpus=8).advice[0]

    assert first_advice(figures(4, 3.9)) == "More workers: 4 workers use 3.9 of 8 usable CPUs"
    assert first_advice(figures(1, 0.97)) == "More workers: 1 worker uses 1.0 of 8 usable CPUs"
    assert "ffmpeg -g 2" in first_advice(figures(8, 7.6))


def test_the_fastest_point_with_workers_is_judged() -> None:
    slow, fast = figures(2, 0.2), figures(4, 3.9)
    fast = PointResult(**{**vars(fast), "samples_per_s": Estimate(200.0, 190.0, 210.0)})
    in_process = PointResult(**{**vars(figures(0, 0.1)), "samples_per_s": Estimate(900.0, 890.0, 910.0)})

    def judged(*points: PointResult) -> Bottleneck:
        return bottleneck(points, DECODING, usable_cpus=8)

    assert judged(in_process, slow, fast).name == "decode"
    assert judged(slow).name == "waiting"


def test_the_stages_of_a_recording_are_told_apart() -> None:
    samples = context().run.dataset()
    names = [name for name, _ in samples.batch_stages()]
    assert names == ["decode", "transform"]
    value: Any = [7, 300]
    for _, stage in samples.batch_stages():
        value = stage(value)
    for sample, expected in zip(value, (samples[7], samples[300]), strict=True):
        assert sample.keys() == expected.keys()
        for slot, picture in expected["image"].items():
            np.testing.assert_array_equal(sample["image"][slot], picture)
        np.testing.assert_array_equal(sample["actions"], expected["actions"])
    found = costs(attribute(samples, batch_size=4, num_workers=0, seconds=0.5))
    assert found["decode"].cpu_s > found["transform"].cpu_s
