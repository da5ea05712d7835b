"""`env.devices` speaks of GPUs that hang, fail or lie, and tries what is known to help."""

import jax
import pytest
from healthy import GIB, SLOW, context, spoken

from checks import CHECKLIST
from checks.env_devices import CHECK
from preflight.checklist import run_checks
from preflight.telemetry.devices import PresentGpu
from preflight.training.device_trial import Trial

H100S = [
    PresentGpu(index=i, name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB, free_bytes=80 * GIB, driver="570")
    for i in range(2)
]
KINDS = ("NVIDIA H100 80GB HBM3",) * 2
WELL = Trial(backend="gpu", devices=KINDS, seconds={"start": 4.0, "compute": 3.0, "exchange": 0.4})
STUCK = Trial(backend="gpu", devices=KINDS, seconds={"start": 4.0, "compute": 3.0}, stage="exchange", hung=True)


def tried(*trials, gpus=H100S, **environ):
    """The healthy run on these GPUs, which are tried with these results, and what they were tried under."""
    left, asked = list(trials), []

    def trial(variables):
        asked.append(variables)
        return left.pop(0)

    return context(probes={"gpus": lambda: gpus, "environ": environ, "trial": trial}), asked


def test_without_a_gpu_there_is_nothing_to_try():
    assert CHECK.run(tried(gpus=[])[0]).status == "skip"
    assert CHECK.run(tried(CUDA_VISIBLE_DEVICES="")[0]).status == "skip"


def test_gpus_that_work_pass_with_their_times():
    checked, asked = tried(WELL)
    outcome = CHECK.run(checked)
    assert outcome.status == "pass"
    assert outcome.summary == (
        "2 x NVIDIA H100 80GB HBM3: matrix product and convolution are right on each, and so is a sum over all of them "
        "(7.4 s)"
    )
    assert outcome.measured["seconds"]["exchange"] == 0.4
    assert asked == [{}]


def test_a_jax_without_its_plugin_is_not_taken_for_gpus_that_work():
    outcome = CHECK.run(tried(Trial(backend="cpu", devices=("cpu",), seconds={"start": 1.0, "compute": 1.0}))[0])
    assert outcome.status == "skip"
    assert "no GPU was tried" in outcome.summary


def test_gpus_that_jax_does_not_find_are_not_taken_for_tried():
    alone = Trial(backend="gpu", devices=KINDS[:1], seconds={"start": 4.0, "compute": 3.0})
    outcome = CHECK.run(tried(alone)[0])
    assert outcome.status == "warn"
    assert outcome.summary.startswith("jax finds 1 of 2 visible GPUs, and the others were not tried; 1 x NVIDIA H100")
    # Those that are hidden need no try.
    assert CHECK.run(tried(alone, CUDA_VISIBLE_DEVICES="1")[0]).status == "pass"


def test_one_gpu_is_asked_for_no_sum():
    alone = Trial(backend="gpu", devices=KINDS[:1], seconds={"start": 4.0, "compute": 3.0})
    summary = "1 x NVIDIA H100 80GB HBM3: matrix product and convolution are right (3.0 s)"
    assert CHECK.run(tried(alone, gpus=H100S[:1])[0]).summary == summary


def test_an_exchange_that_hangs_trips_it_alone_and_what_helps_is_found_out(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    checked, asked = tried(STUCK, WELL)
    checks = [check for check in CHECKLIST if check.id not in (*SLOW, "storage.write")]
    results = {result.check.id: result for result in run_checks(checks, checked, max_parallel=1)}
    assert spoken(results) == {CHECK.id}, {i: results[i].outcome.summary for i in spoken(results)}
    outcome = results[CHECK.id].outcome
    assert outcome.status == "fail"
    assert outcome.summary == (
        "a sum over 2 GPUs did not come back in time: the run would stand still at its first step"
    )
    assert asked == [{}, {"NCCL_P2P_DISABLE": "1"}]
    assert outcome.hint.text == "without NCCL's peer-to-peer transfers it takes 0.4 s: set this"
    assert outcome.hint.commands == ("export NCCL_P2P_DISABLE=1",)
    assert outcome.measured["without_peer_to_peer"] is True


def test_what_does_not_help_is_not_advised():
    checked, _ = tried(STUCK, STUCK)
    outcome = CHECK.run(checked)
    assert outcome.hint.text.startswith("NCCL_P2P_DISABLE=1 does not help, either; name GPUs")
    assert outcome.hint.commands[0].startswith("NCCL_DEBUG=INFO preflight check ")
    checked, asked = tried(STUCK, NCCL_P2P_DISABLE="1")
    assert CHECK.run(checked).hint.text.startswith("name GPUs")
    assert asked == [{}]


@pytest.mark.parametrize(
    ("trial", "words", "command"),
    [
        (Trial(stage="start", hung=True), "jax did not find the devices in time", "dmesg | grep -i xid"),
        (Trial(stage="compute", hung=True, devices=KINDS), "a matrix product did not come back", "nvidia-smi"),
        (Trial(stage="compute", error="ptxas exited with 255", devices=KINDS), "do not compute: ptxas", "unset LD_"),
        (Trial(stage="start", error="x", output=("Loaded runtime CuDNN library: 9.1",)), "not start: x", "unset LD_"),
        (Trial(stage="compute", error="cuda:0 computes [0.0]", devices=KINDS), "computes [0.0]", "nvidia-smi"),
        (Trial(stage="exchange", error="unhandled system error", devices=KINDS), "2 GPUs fails: un", "NCCL_"),
    ],
)
def test_every_failure_says_what_and_where(trial, words, command):
    outcome = CHECK.run(tried(trial, STUCK)[0])
    assert outcome.status == "fail"
    assert words in outcome.summary
    assert any(one.startswith(command) for one in outcome.hint.commands)
