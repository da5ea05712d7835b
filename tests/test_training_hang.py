"""A run that stands still is told of, with the place where it stands; one that is only slow is not."""

import contextlib
import subprocess
import sys
import threading
import time

import pytest

from preflight.config.watch import WatchSettings, read_watch
from preflight.data.loader import BatchLoader
from preflight.errors import EXIT_WATCH_STOPPED, PreflightError
from preflight.training.hang import HangWatch

PATIENCE_S = 20.0  # of the tests: on a busy machine threads run late


class Stuck:
    """Waits for ever for a lock in each sample."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        threading.Event().wait()  # no one sets it


def settings(**limits):
    """Short time-outs; the longest pause is multiplied by little, which leaves `seconds` as the least."""
    return read_watch("x", {"hang": {"factor": 1.1, **limits}})


class Heard(list):
    """Alerts, and a wait for the next."""

    def __init__(self):
        super().__init__()
        self.came = threading.Event()

    def __call__(self, alert):
        self.append(alert)
        self.came.set()

    def next(self):
        assert self.came.wait(PATIENCE_S), "nothing was said"
        self.came.clear()
        return self[-1]


def stand_still_until(event):
    """What the tests look for in the stacks."""
    event.wait(PATIENCE_S)


def test_a_hang_is_told_of_once_with_the_place_and_all_stacks(tmp_path):
    heard = Heard()
    with HangWatch(settings(seconds=0.5, start=0.5), on_alert=heard, folder=tmp_path) as hang:
        for step in range(5):
            hang.beat(step)
        stand_still_until(heard.came)
        alert = heard.next()
        written = wait_for(tmp_path / "hang_4.txt")
        time.sleep(1.2)  # more than two further time-outs
        assert len(heard) == 1
        # It goes on, and stands still again.
        hang.beat(5)
        heard.next()
    assert (alert.rule, alert.severity, alert.step) == ("hang", "warn", 4)
    assert "after step 4" in alert.message
    assert "the training thread is at test_training_hang.py" in alert.message
    assert "stand_still_until" in alert.message
    assert "hang_4.txt" in alert.message
    assert alert.measured["waited_s"] > 0.5
    assert "in stand_still_until" in written
    assert "hang.py" in written  # every thread's, its own as well
    assert [one.step for one in heard] == [4, 5]


def test_workers_that_are_stuck_are_named(tmp_path):
    heard = Heard()
    with BatchLoader(Stuck(), batch_size=4, num_workers=2, timeout_s=2 * PATIENCE_S) as loader:
        threading.Thread(target=read_one, args=(loader,)).start()
        deadline = time.monotonic() + PATIENCE_S
        while not all(stack.reads for stack in loader.worker_stacks()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with HangWatch(
            settings(seconds=0.5, start=0.5), on_alert=heard, worker_stacks=loader.worker_stacks, folder=tmp_path
        ):
            alert = heard.next()
            written = wait_for(tmp_path / "hang_start.txt")
    assert "before the first step ended" in alert.message
    assert "worker 0 is at test_training_hang.py" in alert.message
    assert "__getitem__: threading.Event().wait()" in alert.message
    assert "Likely causes" in alert.message
    assert alert.measured["workers"] == 2
    assert written.count("__getitem__") >= 2


def read_one(loader):
    with contextlib.suppress(PreflightError, RuntimeError, OSError, ValueError):  # the test closes it meanwhile
        next(loader)


def test_the_time_out_is_that_of_the_start_then_of_the_longest_pause():
    hang = HangWatch(read_watch("x", {"hang": {"seconds": 0.1, "factor": 10, "start": 60}}), on_alert=pytest.fail)
    assert hang.timeout_s() == 60
    hang.beat(0)
    for step in range(1, 4):
        assert hang.timeout_s() == 60
        time.sleep(0.05)
        hang.beat(step)
    assert 0.5 <= hang.timeout_s() < 20
    with hang.busy("checkpoint 3"):
        assert hang.timeout_s() == 60
    assert hang.timeout_s() < 20


def test_the_defaults_are_generous():
    hang = HangWatch(WatchSettings(), on_alert=pytest.fail)
    assert hang.timeout_s() == 1800
    for step in range(10):
        hang.beat(step)
    assert hang.timeout_s() == 300


def test_a_save_may_take_its_time_and_one_that_hangs_is_named(tmp_path):
    heard = Heard()
    with HangWatch(settings(seconds=0.2, start=1.5), on_alert=heard, folder=tmp_path) as hang:
        for step in range(5):
            hang.beat(step)
        with hang.busy("checkpoint 4"):
            time.sleep(0.8)
            assert not heard
            alert = heard.next()
    assert "during checkpoint 4" in alert.message
    assert alert.measured["during"] == "checkpoint 4"


def test_a_run_that_is_steady_or_whose_rule_is_off_hears_nothing():
    with HangWatch(settings(seconds=5, start=5), on_alert=pytest.fail) as hang:
        for step in range(10):
            time.sleep(0.05)
            hang.beat(step)
    with HangWatch(read_watch("x", {"hang": False}), on_alert=pytest.fail) as hang:
        hang.beat(0)
        assert not any(thread.name == "hang-watch" for thread in threading.enumerate())


def test_of_severity_stop_it_ends_the_process():
    codes = Heard()
    grave = settings(seconds=0.2, start=0.2, severity="stop")
    with HangWatch(grave, on_alert=lambda alert: None, end=codes):
        assert codes.next() == EXIT_WATCH_STOPPED


def test_a_disk_that_hangs_as_well_does_not_keep_the_process_alive(monkeypatch):
    monkeypatch.setattr("preflight.training.hang._TELL_S", 0.2)
    codes = Heard()
    never = threading.Event()
    grave = settings(seconds=0.2, start=0.2, severity="stop")
    with HangWatch(grave, on_alert=lambda alert: never.wait(PATIENCE_S), end=codes):
        assert codes.next() == EXIT_WATCH_STOPPED
    never.set()


def test_stacks_are_written_though_a_library_holds_the_interpreter():
    code = """
import ctypes
from preflight.config.watch import read_watch
from preflight.training.hang import HangWatch
settings = read_watch("x", {"hang": {"factor": 1.1, "seconds": 0.5, "start": 0.5}})
def hold():
    ctypes.PyDLL(None).usleep(4_000_000)  # with the interpreter's lock, for four seconds
with HangWatch(settings, on_alert=print) as hang:
    import time
    time.sleep(0.2)
    hold()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Timeout (0:00:00" in done.stderr
    assert "in hold" in done.stderr


def wait_for(path):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if path.is_file() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} was not written")
