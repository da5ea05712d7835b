"""Devices tried in a process of its own: real ones of the CPU, and processes that hang, lie or die."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

import preflight.training.trial_child
from preflight.training.device_trial import try_devices

CHILD = Path(preflight.training.trial_child.__file__)
CPUS = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count={}"}


def cpus(count):
    return {name: value.format(count) for name, value in CPUS.items()}


def spoilt(code):
    """The child, after something was done to it."""
    start = f"import sys, time; sys.path.insert(0, {str(CHILD.parent)!r}); import trial_child as child; "
    return (sys.executable, "-c", f"{start}{code}\nchild.main(child.Path(sys.argv[1]))")


def test_devices_that_work_go_through_every_stage():
    trial = try_devices(cpus(2))
    assert (trial.stage, trial.error, trial.hung) == (None, None, False), trial.output
    assert (trial.backend, trial.devices) == ("cpu", ("cpu", "cpu"))
    assert list(trial.seconds) == ["start", "compute", "exchange"]
    assert all(0 <= second < 90 for second in trial.seconds.values())


def test_one_device_exchanges_nothing():
    trial = try_devices(cpus(1))
    assert trial.stage is None
    assert list(trial.seconds) == ["start", "compute"]


def test_an_exchange_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    pids = tmp_path / "pids"
    code = f"import os, subprocess; one = subprocess.Popen(['sleep', '600']); open({str(pids)!r}, 'w').write("
    code += "f'{os.getpid()} {one.pid}'); child._compute = print; child._exchange = lambda devices: time.sleep(600)"
    began = time.monotonic()
    trial = try_devices(cpus(2), timeout_s=15.0, program=spoilt(code))
    assert (trial.stage, trial.hung, trial.error) == ("exchange", True, None), trial.output
    assert 15 <= time.monotonic() - began < 40
    assert len(trial.devices) == 2
    assert list(trial.seconds) == ["start", "compute"]
    for pid in pids.read_text().split():
        assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("code", "stage", "error"),
    [
        ("child._ends = lambda a: (a.min((1, 2, 3)), 1 + a.max((1, 2, 3)))", "compute", "[512.0, 512.0, 72.0, 73.0]"),
        ("child._devices = lambda: 1 / 0", "start", "division by zero"),
        ("child._compute = lambda devices: __import__('os').abort()", "compute", "the process ended with SIGABRT"),
        ("sys.exit('no such driver')", "start", "the process ended with exit code 1: no such driver"),
    ],
)
def test_what_goes_wrong_is_told_with_its_stage(code, stage, error):
    trial = try_devices(cpus(1), program=spoilt(code))
    assert (trial.stage, trial.hung) == (stage, False)
    assert error in trial.error


def test_sums_that_are_wrong_are_not_taken_for_right():
    code = "import jax; real = jax.numpy.arange; jax.numpy.arange = lambda *a: real(*a) + 1"
    trial = try_devices(cpus(2), program=spoilt(code))
    assert trial.stage == "exchange"
    assert "got sums from 5 to 5, and all are 3" in trial.error


def test_a_line_that_was_cut_off_is_no_line(tmp_path):
    code = 'import sys; open(sys.argv[1], \'w\').write(\'{"stage": "start"}\\n{"sta\')'
    trial = try_devices(program=(sys.executable, "-c", code + "; import os; os._exit(3)"))
    assert (trial.stage, trial.error) == ("start", "the process ended with exit code 3")
    assert os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE") is None
