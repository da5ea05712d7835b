import itertools
import subprocess
import sys
import threading

import pytest

from preflight.checklist import Check, failed, passed, run_checks, skipped, warned
from preflight.errors import DataError, UsageError

PATIENCE_S = 60  # how long a test waits for what must happen; only a broken runner makes it wait


def check(id_, run=lambda _: passed("ok"), **fields):
    return Check(id=id_, title=id_, level="quick", run=run, **fields)


def summaries(results):
    return {result.check.id: (result.status, result.outcome.summary) for result in results}


class Recorder:
    def __init__(self):
        self.started = []
        self.results = []
        self.threads = set()

    def on_start(self, check):
        self.started.append(check.id)
        self.threads.add(threading.current_thread())

    def on_result(self, result):
        self.results.append(result)
        self.threads.add(threading.current_thread())


def test_the_context_reaches_the_check_and_its_outcome_comes_back():
    outcome = passed("8 of 8 videos opened", measured={"videos": 8})
    (result,) = run_checks([check("data.videos", lambda context: outcome if context == "here" else None)], "here")
    assert result.outcome is outcome
    assert result.ignored is None
    assert not result.abandoned


def test_durations_go_by_the_given_clock():
    ticks = itertools.count(step=2.5)
    results = run_checks([check("a.one"), check("a.two")], None, max_parallel=1, clock=lambda: next(ticks))
    assert [result.duration_s for result in results] == [2.5, 2.5]


def test_a_crash_is_an_error_with_type_message_and_place():
    def crash(context):
        return {}["missing"]

    (result,) = run_checks([check("a.crash", crash)], None)
    assert result.status == "error"
    assert result.outcome.summary == "the check broke: KeyError: 'missing'"
    assert result.outcome.evidence[0].endswith("in crash")
    assert __file__ in result.outcome.evidence[0]
    assert result.outcome.evidence[-1] == "KeyError: 'missing'"


def test_no_exception_escapes_a_check():
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    def make(error):
        def run(context):
            raise error

        return run

    errors = [SystemExit(3), KeyboardInterrupt(), AssertionError(), MuteError(), ValueError("\n\nfirst\nsecond")]
    results = run_checks([check(f"a.number-{i}", make(error)) for i, error in enumerate(errors)], None)
    assert [(r.status, r.outcome.summary) for r in results] == [
        ("error", "the check broke: SystemExit: 3"),
        ("error", "the check broke: KeyboardInterrupt"),
        ("error", "the check broke: AssertionError"),
        ("error", "the check broke: MuteError: (its message cannot be printed)"),
        ("error", "the check broke: ValueError: first"),
    ]


def test_a_crash_deep_down_keeps_only_its_innermost_frames():
    def recurse(context, depth=0):
        return recurse(context, depth + 1)

    (result,) = run_checks([check("a.deep", recurse)], None)
    assert result.outcome.summary.startswith("the check broke: RecursionError: maximum recursion depth exceeded")
    assert len(result.outcome.evidence) <= 13


def test_an_error_the_user_can_mend_is_a_fail_with_its_hint():
    def run(context):
        raise DataError("meta/info.json is missing in /data/x", hint="Download the dataset again.")

    (result,) = run_checks([check("data.present", run)], None)
    assert result.outcome == failed("meta/info.json is missing in /data/x", hint=result.outcome.hint)
    assert result.outcome.hint.text == "Download the dataset again."


@pytest.mark.parametrize(("value", "name"), [(None, "NoneType"), (True, "bool"), ("pass", "str")])
def test_what_is_no_outcome_never_passes(value, name):
    (result,) = run_checks([check("a.wrong", lambda _: value)], None)
    assert (result.status, result.outcome.summary) == (
        "error",
        f"the check broke: it returned {name}, not an Outcome",
    )


def test_a_miss_of_a_tuning_check_is_a_warning_but_its_crash_is_an_error():
    results = run_checks(
        [
            check("a.miss", lambda _: failed("slow", measured={"n": 1}), severity="warn"),
            check("a.crash", lambda _: 1 / 0, severity="warn"),
            check("a.fine", severity="warn"),
        ],
        None,
    )
    assert [result.status for result in results] == ["warn", "error", "pass"]
    assert results[0].outcome == warned("slow", measured={"n": 1})


def test_a_check_that_runs_into_its_limit_is_given_up_and_its_late_result_dropped():
    release = threading.Event()

    def hang(context):
        release.wait(PATIENCE_S)
        return passed("too late")

    def after(context):
        release.set()  # the hung check returns now, while the list is still running
        for thread in threading.enumerate():
            if thread.name == "check a.hang":
                thread.join(PATIENCE_S)
        return passed("ok")

    recorder = Recorder()
    checks = [check("a.hang", hang, timeout_s=0.05), check("a.after", after, exclusive=True)]
    hung, other = run_checks(checks, None, observers=[recorder])
    assert hung.abandoned
    assert hung.status == "error"
    assert hung.outcome.summary == "timed out after 0.05 s; its thread is abandoned and may still be running"
    assert any("release.wait(PATIENCE_S)" in line for line in hung.outcome.evidence)
    assert not any("checklist/runner.py" in line for line in hung.outcome.evidence)
    assert other.status == "pass"
    assert recorder.results == [hung, other]


def test_a_measurement_beside_an_abandoned_check_says_so():
    release = threading.Event()
    checks = [
        check("a.hang", lambda _: passed(str(release.wait(PATIENCE_S))), timeout_s=0.05),
        check("a.measure", lambda _: passed("100 samples/s"), exclusive=True),
    ]
    measured = run_checks(checks, None)[1]
    release.set()
    assert measured.outcome.evidence == ("not alone on the machine: a.hang timed out and may still have been running",)


def test_cheap_checks_run_side_by_side():
    barrier = threading.Barrier(3)  # nobody passes it alone

    def meet(context):
        barrier.wait(PATIENCE_S)
        return passed("met")

    results = run_checks([check(f"a.number-{i}", meet) for i in range(3)], None, max_parallel=3)
    assert [result.outcome.summary for result in results] == ["met"] * 3


@pytest.mark.parametrize("max_parallel", [1, 2])
def test_never_more_than_max_parallel(max_parallel):
    lock, now, most = threading.Lock(), 0, 0

    def run(context):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.005)
        with lock:
            now -= 1
        return passed("ok")

    run_checks([check(f"a.number-{i}", run) for i in range(8)], None, max_parallel=max_parallel)
    assert 1 <= most <= max_parallel
    with pytest.raises(ValueError, match="max_parallel is 0"):
        run_checks([check("a.one")], None, max_parallel=0)


def test_exclusive_checks_run_alone_after_the_cheap_ones_and_in_order():
    log = []

    def logging(name):
        def run(context):
            log.append(("start", name))
            threading.Event().wait(0.005)
            log.append(("end", name))
            return passed("ok")

        return run

    checks = [
        check("a.first-alone", logging("first-alone"), exclusive=True),
        check("a.cheap", logging("cheap")),
        check("a.second-alone", logging("second-alone"), exclusive=True),
        check("a.other", logging("other")),
    ]
    run_checks(checks, None)
    assert {name for _, name in log[:4]} == {"cheap", "other"}
    assert log[4:] == [
        ("start", "first-alone"),
        ("end", "first-alone"),
        ("start", "second-alone"),
        ("end", "second-alone"),
    ]


def test_a_cheap_check_may_require_an_exclusive_one():
    order = []

    def noting(name):
        return lambda _: order.append(name) or passed("ok")

    checks = [
        check("a.starvation", noting("starvation"), requires=("a.throughput",)),
        check("a.throughput", noting("throughput"), exclusive=True),
        check("a.last", noting("last"), exclusive=True),
    ]
    assert [result.status for result in run_checks(checks, None)] == ["pass"] * 3
    assert order == ["throughput", "starvation", "last"]


def test_results_come_in_list_order_on_the_calling_thread():
    second_done = threading.Event()

    def slow(context):
        assert second_done.wait(PATIENCE_S)
        return passed("first")

    def quick(context):
        second_done.set()
        return passed("second")

    recorder = Recorder()
    results = run_checks([check("a.slow", slow), check("a.quick", quick)], None, observers=[recorder])
    assert recorder.results == results
    assert [result.check.id for result in results] == ["a.slow", "a.quick"]
    assert sorted(recorder.started) == ["a.quick", "a.slow"]
    assert recorder.threads == {threading.current_thread()}


@pytest.mark.parametrize(
    ("run", "status"), [(lambda _: failed("no"), "fail"), (lambda _: skipped("none"), "skip"), (lambda _: 1, "error")]
)
def test_what_has_no_subject_is_skipped_naming_the_root(run, status):
    recorder = Recorder()
    checks = [
        check("data.present", run),
        check("data.sample", requires=("data.present",)),
        check("data.prompts", requires=("data.sample", "data.present")),
        check("env.apis"),
    ]
    results = summaries(run_checks(checks, None, observers=[recorder], ignores={"data.present": "known"}))
    assert results["data.present"][0] == status
    assert results["data.sample"] == ("skip", "blocked by data.present")
    assert results["data.prompts"] == ("skip", "blocked by data.present")
    assert results["env.apis"] == ("pass", "ok")
    assert sorted(recorder.started) == ["data.present", "env.apis"]


def test_several_blockers_are_all_named():
    checks = [
        check("a.one", lambda _: failed("no")),
        check("a.two", lambda _: failed("no")),
        check("a.three", requires=("a.one", "a.two")),
    ]
    assert summaries(run_checks(checks, None))["a.three"] == ("skip", "blocked by a.one, a.two")


def test_a_warning_blocks_nobody():
    checks = [
        check("a.one", lambda _: failed("slow"), severity="warn"),
        check("a.two", lambda _: warned("odd")),
        check("a.three", requires=("a.one", "a.two")),
    ]
    assert summaries(run_checks(checks, None))["a.three"] == ("pass", "ok")


def test_ignores_are_kept_with_the_result():
    failing, fine = run_checks(
        [check("a.one", lambda _: failed("no")), check("a.two")], None, ignores={"a.one": "known"}
    )
    assert (failing.status, failing.ignored, failing.counts) == ("fail", "known", False)
    assert (fine.ignored, fine.counts) == (None, True)


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ([check("a.one", requires=("a.two",))], "a.one requires a.two, and no check in the list has that id"),
        ([check("a.one", requires=("a.one",))], "in a circle: a.one -> a.one"),
        ([check("a.one"), check("a.one")], "two checks are called a.one"),
    ],
)
def test_a_list_that_cannot_be_run_is_refused(checks, message):
    with pytest.raises(UsageError, match=message):
        run_checks(checks, None)


def test_a_circle_is_spelled_out():
    checks = [
        check("a.one", requires=("a.two",)),
        check("a.two", requires=("a.three",)),
        check("a.three", requires=("a.one",)),
    ]
    with pytest.raises(UsageError) as caught:
        run_checks(checks, None)
    circle = caught.value.message.removeprefix("checks require each other in a circle: ").split(" -> ")
    required = {check.id: check.requires for check in checks}
    assert len(circle) == 4
    assert all(after in required[before] for before, after in itertools.pairwise(circle))


def test_an_empty_list_has_no_results():
    assert run_checks([], None) == []


def test_ctrl_c_is_obeyed_while_a_check_hangs():
    script = """
import os, signal, time
from preflight.checklist import Check, run_checks

def hang(context):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(3600)

try:
    run_checks([Check(id="a.hang", title="", level="quick", timeout_s=3600, run=hang)], None)
except KeyboardInterrupt:
    os._exit(130)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=PATIENCE_S).returncode == 130
