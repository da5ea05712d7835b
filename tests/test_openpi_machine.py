"""What goes wrong between openpi's runs and the machine they fly on: memory, disks, networks, launchers."""

import dataclasses

import openpi_fork
import pytest
from healthy import GIB, HEALTHY, outcome_of
from openpi_fork import load, write_stats

from checks.context import CheckContext
from preflight.errors import DataError
from preflight.telemetry.devices import PresentGpu
from preflight.telemetry.memory import MemoryLimit
from preflight.telemetry.targets import parse_target
from preflight.training.device_compile import StepMemory

pytestmark = openpi_fork.MARKS


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    with openpi_fork.opened(tmp_path_factory) as opened:
        yield opened


@pytest.fixture(scope="module")
def healthy(user, tmp_path_factory):
    """A folder with the healthy run's statistics."""
    folder = tmp_path_factory.mktemp("healthy")
    write_stats(load(folder))
    return folder


def judged(id_, run, *, target=None, **probes):
    checked = CheckContext(
        run=run,
        probes=dataclasses.replace(HEALTHY, **probes),
        target=None if target is None else parse_target(target),
    )
    return outcome_of(id_, checked)


def test_a_healthy_run_is_silent(healthy):
    for id_ in ("memory.checkpoint", "memory.device", "tracking.wandb", "env.hosts", "config.fsdp"):
        assert judged(id_, load(healthy)).status in ("pass", "skip"), id_


def test_a_save_that_does_not_fit_the_hosts_ram(healthy):  # F01
    gpu = PresentGpu(index=0, name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB, free_bytes=80 * GIB, driver="570")
    little = {"gpus": lambda: [gpu], "memory": lambda: MemoryLimit(2**26, 2**26, "MemAvailable")}
    outcome = judged("memory.checkpoint", load(healthy), **little)
    assert outcome.status == "fail"
    assert outcome.summary.startswith("no checkpoint can be saved: a save takes ")


def test_an_orbax_that_was_seen_to_leak(healthy, monkeypatch):  # F02
    from checks import memory_checkpoint

    gpu = PresentGpu(index=0, name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB, free_bytes=80 * GIB, driver="570")
    often = load(healthy, "save_interval=83", "keep_period=none")
    assert judged("memory.checkpoint", often, gpus=lambda: [gpu]).status == "pass"  # openpi's own 0.11.13
    monkeypatch.setattr(memory_checkpoint, "_orbax_version", lambda: "0.11.19")
    outcome = judged("memory.checkpoint", often, gpus=lambda: [gpu])
    assert outcome.status == "warn"
    assert outcome.summary.startswith(
        "RAM may grow with each of 15 saves: on a GPU, Orbax 0.11.19 was reported to leak"
    )


def xla(gib_by_devices):
    """A compiler that answers with what each of so many devices takes."""

    def compile_(step, device):
        return StepMemory(
            arguments=0,
            outputs=0,
            aliases=0,
            temporaries=int(gib_by_devices[step.num_devices] * GIB),
            compiler="jax 9.9 for a test",
            seconds=1.0,
            rss_mib=1.0,
        )

    return compile_


def test_the_share_that_jax_takes_is_too_small(healthy):  # F08
    run = load(healthy, "ema_decay=none", name="g1_full")
    outcome = judged("memory.device", run, target="h100-80gb", compile=xla({1: 65}))
    assert outcome.status == "fail"
    assert outcome.hint.text == "it fits with 95% of the GPU's memory for jax"
    assert outcome.hint.commands[0].startswith("XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 preflight check g1_full ")


def test_a_batch_that_does_not_fit_and_a_state_that_several_gpus_share(healthy):  # F09, F46
    run = load(healthy, "batch_size=256", "ema_decay=none", name="g1_full")
    outcome = judged("memory.device", run, target="4xh100-80gb", compile=xla({1: 100, 4: 60}))
    assert outcome.status == "fail"
    first, second = outcome.hint.commands
    # openpi's own models divide their activations over the mesh when the step is traced for it.
    assert first.endswith("--set batch_size=256 --set ema_decay=none --set fsdp_devices=2 --target 4xh100-80gb")
    assert "--set batch_size=" in second
    shared = load(healthy, "ema_decay=none", "fsdp_devices=4", name="g1_full")
    outcome = judged("memory.device", shared, target="4xh100-80gb", compile=xla({4: 20}))
    assert outcome.status == "pass"
    assert outcome.measured["optimizer_gib"] == pytest.approx(24.1 / 4, abs=0.1)
    assert judged("config.fsdp", shared, target="4xh100-80gb").summary == (
        "all 4 x NVIDIA H100 SXM 80 GB share each batch and hold one copy of the state, each sharded over 4 "
        "(fsdp_devices 4)"
    )


def test_saves_slower_than_the_steps_between_them(healthy, monkeypatch):  # F41
    from checks import storage_write

    slow = {"seconds": 60.0, "blocking_s": 1.0, "bytes": 10**6, "stored": 10**6, "peak": 2 * 10**6}
    monkeypatch.setattr(storage_write, "_rehearse", lambda place, shapes: slow)
    monkeypatch.setattr(storage_write, "_step_s", lambda checked: (0.1, 0.25))
    outcome = judged("storage.write", load(healthy))
    assert outcome.status == "warn"
    assert "--set save_interval=" in outcome.hint.commands[0]


def test_one_of_several_processes(healthy):  # F48
    outcome = judged("env.hosts", load(healthy), environ={"OMPI_COMM_WORLD_SIZE": "2"})
    assert outcome.status == "fail"
    assert "openpi's script never joins processes either" in outcome.hint.text


def test_a_wandb_server_that_does_not_answer(healthy):  # F49
    run = openpi_fork.changed(load(healthy), wandb_enabled=True)
    environ = {"WANDB_MODE": "online", "WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    outcome = judged("tracking.wandb", run, environ=environ)
    assert outcome.status == "warn"
    assert "127.0.0.1:9 does not answer" in outcome.summary
    assert outcome.hint.commands == ("export WANDB_MODE=offline",)


def test_a_decoder_that_cannot_be_loaded_is_told_with_what_brings_it(healthy, monkeypatch):  # F22
    """torchcodec is LeRobot's choice wherever it is installed, also where FFmpeg's libraries are not."""
    message = "Could not load libtorchcodec. Likely causes:\n  1. FFmpeg is not properly installed in your environment."

    def fails(*words, **settings):
        raise RuntimeError(message)

    from lerobot.common.datasets import lerobot_dataset

    # Which reads by PyAV alone; with torchcodec it leaves the videos to LeRobot.
    monkeypatch.setattr("preflight.runs.openpi.data.keep_videos_open", lambda dataset: False)
    dataset = load(healthy).dataset()
    monkeypatch.setattr(lerobot_dataset, "decode_video_frames", fails)
    with pytest.raises(DataError) as caught:
        dataset[0]
    assert caught.value.message == "sample 0 cannot be made: torchcodec is installed and cannot be loaded"
    outcome = judged("data.sample", load(healthy))
    assert (outcome.status, outcome.summary) == ("fail", caught.value.message)
    assert "FFmpeg 4 to 7" in outcome.hint.text
    assert "uv pip uninstall torchcodec" in outcome.hint.text
