"""`storage.frame-cache` and `loader.starvation`: each speaks where it should, alone."""

import dataclasses
import os
import shutil

import pytest
from healthy import EXAMPLE, GIB, SOUND, context, outcome_of, run_all, spoken
from recoded import CAMERA, V30, v30_video
from sweep_sample import point, sweep_result
from test_bench_attribution import DECODING, figures

from bench.bottleneck import bottleneck
from bench.cache_offer import cache_offer
from bench.notes import notes
from preflight.runs import load_run
from preflight.telemetry.memory import MemoryLimit
from preflight.telemetry.targets import parse_target


def test_a_disk_or_a_memory_that_is_too_small_trips_it_alone(tmp_path):
    disk = ["data.cache=disk", f"data.cache_dir={tmp_path / 'kept'}"]
    small = {"disk_free": lambda path: 60 << 20 if path == tmp_path else 100 * GIB}
    results = run_all(context(*disk, probes=small))
    assert spoken(results) == {"storage.frame-cache"}
    outcome = results["storage.frame-cache"].outcome
    assert outcome.status == "fail"
    assert f"71.5 MiB in {tmp_path / 'kept'}, where 60.0 MiB are free" in outcome.summary
    assert "data.cache_dir" in outcome.hint.text
    assert outcome_of("storage.frame-cache", context(*disk)).status == "pass"
    assert list(tmp_path.iterdir()) == []

    tight = {"memory": lambda: MemoryLimit(60 << 20, GIB, "cgroup v2 memory.max (/job)")}
    outcome = outcome_of("storage.frame-cache", context("data.cache=memory", probes=tight))
    assert outcome.status == "fail"
    assert "71.5 MiB of shared memory by the end of the first epoch, where 60.0 MiB are available (cgroup" in (
        outcome.summary
    )
    assert outcome_of("storage.frame-cache", context("data.cache=memory")).status == "pass"


def test_a_folder_that_is_a_file_trips_it(tmp_path):
    (tmp_path / "file").write_text("")
    outcome = outcome_of("storage.frame-cache", context("data.cache=disk", f"data.cache_dir={tmp_path}/file/frames"))
    assert (outcome.status, outcome.summary.endswith("file is a file")) == ("fail", True)


def test_it_says_what_would_be_made_and_makes_nothing(tmp_path):
    from checks.storage_frame_cache import CHECK

    root = shutil.copytree(V30, tmp_path / "g1")
    settings = (f"data.root={root}", f"data.cache_dir={tmp_path / 'kept'}")
    assert "data.cache is off" in CHECK.run(context(*settings)).summary

    def judged():
        return CHECK.run(context(*settings, "data.cache=disk"))

    absent = judged()
    assert absent.status == "pass"
    assert "is to be made when the run starts: 71.5 MiB" in absent.summary
    assert absent.evidence == (f"{CAMERA} is absent",)
    assert not (tmp_path / "kept").exists()
    context(*settings, "data.cache=disk").run.dataset().frame_cache.prepare(lambda line: None)
    assert "have their checksums" in judged().summary
    os.utime(v30_video(root), ns=(10**18, 10**18))
    assert judged().evidence == (f"{CAMERA} is stale: the dataset's files have changed since it was made",)


def starved(rate, target="h100-80gb", *assignments, workers=2):
    """The full model's step on a GPU, and a loader that was measured elsewhere."""
    run = load_run(EXAMPLE, assignments=[*SOUND, *assignments])
    run.facts = dataclasses.replace(run.facts, num_workers=workers)
    checked = context(run=run, target=target and parse_target(target))
    own = point(2, rate)
    limit = bottleneck([own], DECODING, usable_cpus=1, cache=cache_offer(run.dataset(), DECODING))
    checked.once("loader-sweep", lambda: sweep_result(own, attribution=DECODING, bottleneck=limit))
    full = context(run=load_run("pi0_lighter_cup_trossen", assignments=["batch_size=32"]), target=checked.target)
    if target:
        from checks.device import step_roofline

        checked.once("roofline", lambda: step_roofline(full))
    return checked


@pytest.fixture(scope="module")
def hungry():
    return starved(10.0)


def alone(checked):
    """`loader.starvation` without the loaders that it would start before."""
    from checks.loader_starvation import CHECK

    return CHECK.run(checked)


def test_a_loader_below_the_steps_demand_trips_it_and_the_cache_is_named(hungry):
    outcome = alone(hungry)
    assert outcome.status == "warn"
    assert outcome.summary.startswith("10 samples/s [")
    assert "the GPU would wait for data 57% of the time; asked for are 23 samples/s" in outcome.summary
    assert outcome.measured["demand_samples_per_s"] == pytest.approx([23.2, 66.2], abs=0.2)
    assert "data.cache=disk (71 MiB for 1 camera, " in outcome.hint.text
    assert any("takes 9" in line for line in outcome.evidence)
    assert any(" cache " in command and "data.cache=disk" in command for command in outcome.hint.commands)
    assert "bench-loader" in outcome.hint.commands[-1]


def test_a_loader_that_keeps_up_and_a_step_that_is_not_known_do_not_trip_it():
    assert alone(starved(400.0)).status == "pass"
    nothing = alone(starved(1.0, None))
    assert nothing.status == "skip"
    assert nothing.summary == "what the step asks for is not known: no GPU is here, --target names one"
    other = alone(starved(1.0, workers=7))
    assert (other.status, "7 workers" in other.summary) == ("skip", True)


def test_the_cache_is_offered_where_decoding_limits_and_it_is_not_in_use(tmp_path):
    plain = context().run.dataset()
    offer = cache_offer(plain, DECODING)
    assert offer.startswith("Keep decoded frames: data.cache=disk (71 MiB for 1 camera, ")
    assert offer.endswith("ms of CPU time of a sample, and is done once")
    assert cache_offer(context("data.cache=memory").run.dataset(), DECODING) is None
    assert cache_offer([1, 2], DECODING) is None
    own = point(4, 100.0)
    found = bottleneck([own], DECODING, usable_cpus=1, cache=offer)
    assert found.advice[0] == offer
    result = sweep_result(own, attribution=DECODING, bottleneck=found)
    assert sum("Keep decoded frames" in line for line in notes(result)) == 1
    some = figures(4, 3.9)  # CPUs are free: more workers come first
    free = bottleneck([some], DECODING, usable_cpus=8, cache=offer)
    assert (free.advice[0].startswith("More workers"), free.advice[1]) == (True, offer)
    assert f"{offer}." in notes(sweep_result(some, attribution=DECODING, bottleneck=free))
