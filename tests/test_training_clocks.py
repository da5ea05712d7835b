"""The clocks on a made-up timeline: what the host does in the shadow of a step costs nothing."""

import contextlib
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from preflight.training.clocks import Clocks


class Work:
    """What a step gives, finished when the test says so."""

    def __init__(self):
        self.done = threading.Event()

    def block_until_ready(self):
        self.done.wait(10)
        return self


class Timeline:
    """Clocks whose time the test moves."""

    def __init__(self):
        self.at = 100.0
        self.clocks = Clocks(now=lambda: self.at)
        self.under_way = {}

    def dispatch(self, step):
        self.under_way[step] = Work()
        self.clocks.dispatched(step, self.at, self.under_way[step])

    def finish(self, step):
        self.under_way.pop(step).done.set()
        while (self.clocks.last_finished() or (-1,))[0] < step:
            time.sleep(0.001)


@pytest.fixture
def timeline():
    made = Timeline()
    yield made
    for work in made.under_way.values():
        work.done.set()
    made.clocks.close()


def spent(seconds):
    return {name: value for name, value in seconds.items() if value}


def test_what_the_host_does_while_the_device_works_is_the_steps_time(timeline):
    timeline.dispatch(0)
    with timeline.clocks.on("data_wait"):
        timeline.at += 2
        timeline.finish(0)  # the device is done after two of five seconds
        timeline.at += 3
    timeline.at += 1
    timeline.dispatch(1)
    timeline.at += 4
    timeline.finish(1)
    assert spent(timeline.clocks.lap(1)) == {"step": 6, "data_wait": 3, "host": 1}


def test_a_step_that_was_queued_begins_when_the_one_before_it_ends(timeline):
    timeline.dispatch(0)
    timeline.at += 1
    timeline.dispatch(1)
    timeline.at += 4
    timeline.finish(0)
    timeline.at += 5
    timeline.finish(1)
    assert spent(timeline.clocks.lap(0)) == {"step": 5}
    assert spent(timeline.clocks.lap(1)) == {"step": 5}


def test_a_lap_ends_with_its_step_and_takes_nothing_of_the_next(timeline):
    with timeline.clocks.on("compile"):
        timeline.at += 9
    timeline.dispatch(0)
    timeline.at += 1
    timeline.finish(0)
    with timeline.clocks.on("checkpoint"):
        timeline.at += 7
    timeline.dispatch(1)
    timeline.at += 2
    assert spent(timeline.clocks.lap(0)) == {"compile": 9, "step": 1}
    timeline.finish(1)
    assert spent(timeline.clocks.lap(1)) == {"checkpoint": 7, "step": 2}


def test_all_seconds_together_are_the_whole_time_at_any_moment(timeline):
    clocks, whole = timeline.clocks, lambda: sum(timeline.clocks.seconds().values())
    with clocks.on("start"):
        timeline.at += 1
        with clocks.on("data_wait"):
            timeline.at += 2
        timeline.at += 4
        assert spent(clocks.seconds()) == {"start": 5, "data_wait": 2}
    timeline.at += 8
    timeline.dispatch(0)
    timeline.at += 16
    assert spent(clocks.seconds()) == {"start": 5, "data_wait": 2, "host": 8, "step": 16}  # it is under way
    timeline.finish(0)
    timeline.at += 32
    assert whole() == 63
    clocks.lap(0)
    assert whole() == 63
    assert spent(clocks.seconds())["host"] == 40


def test_a_block_that_raises_gives_the_clock_back(timeline):
    with contextlib.suppress(KeyError), timeline.clocks.on("checkpoint"):
        timeline.at += 1
        raise KeyError
    timeline.at += 2
    assert spent(timeline.clocks.seconds()) == {"checkpoint": 1, "host": 2}


def test_real_arrays_are_waited_for():
    clocks = Clocks()
    work = jax.jit(lambda x: x @ x)
    for step in range(3):
        began = time.perf_counter()
        clocks.dispatched(step, began, work(jnp.ones((64, 64))))
    assert clocks.lap(2)["step"] > 0
    assert clocks.last_finished()[0] == 2
    clocks.close()


def test_a_step_that_fails_on_the_device_still_ends(timeline):
    class Failing:
        def block_until_ready(self):
            raise RuntimeError("out of memory")

    timeline.clocks.dispatched(0, timeline.at, Failing())
    assert spent(timeline.clocks.lap(0)) == {}
