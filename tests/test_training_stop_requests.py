"""Signals to a run: noted, raised, or the end at once where the main thread cannot be interrupted."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from preflight.training.stop_requests import stop_requests


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs


@pytest.fixture
def heeded(number):
    """A signal that is not ignored, even where the tests run under nohup."""
    before = signal.signal(number, signal.SIG_DFL)
    yield
    signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_once_there_is_something_to_save(number, heeded):
    with stop_requests() as stop:
        stop.hold()
        assert not stop
        send(number)
        assert stop
        assert stop.received is number
        send(number)  # so soon, it is the same wish
        time.sleep(0.6)
        with pytest.raises(KeyboardInterrupt):
            send(number)


def test_before_that_it_interrupts():
    with stop_requests() as stop:
        with pytest.raises(KeyboardInterrupt):
            send()
        assert not stop


def test_handlers_are_given_back_and_what_is_ignored_stays_ignored():
    before = signal.getsignal(signal.SIGTERM)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            stop.hold()
            send(signal.SIGHUP)
            assert not stop
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert not any(thread.name == "stop-requests" for thread in threading.enumerate())


def test_another_thread_leaves_the_signals_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def fly():
        with stop_requests() as stop:
            found.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=fly)
    thread.start()
    thread.join()
    assert found == [(False, before)]


@pytest.mark.parametrize(("state", "signals"), [("free", 1), ("held", 2)])
def test_a_main_thread_that_no_signal_reaches_is_left(state, signals):
    child = [sys.executable, str(Path(__file__).parent / "stop_child.py"), state]
    with subprocess.Popen(child, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "busy\n"
            for _ in range(signals):
                time.sleep(0.7)  # until it is there; and so that the second signal is another wish
                assert process.poll() is None
                process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 130
            assert process.stdout.read() == ""
        finally:
            process.kill()
