"""`loader.first-batch` on real loaders: one that works, one that hangs, one that dies."""

import dataclasses

import psutil
from healthy import EXAMPLE, SOUND, context, outcome_of
from loader_datasets import Sleepy, Suicidal

from checks import CHECKLIST
from checks.loader_first_batch import CHECK
from preflight.checklist import run_checks
from preflight.runs import load_run


class WithDataset:
    """A run whose samples are others'."""

    def __init__(self, run, dataset):
        self._run, self._dataset = run, dataset

    def __getattr__(self, name):
        return getattr(self._run, name)

    def dataset(self):
        return self._dataset


def loading(dataset, *assignments):
    run = load_run(EXAMPLE, assignments=[*SOUND, "num_workers=2", "batch_size=4", *assignments])
    return context(run=WithDataset(run, dataset))


def workers():
    """The loader's processes: children of the worker server, which is a child of this process."""
    found = {grandchild for child in psutil.Process().children() for grandchild in child.children(recursive=True)}
    return psutil.wait_procs(found, timeout=5)[1]


def test_a_loader_that_works_passes_with_its_time():
    outcome = outcome_of("loader.first-batch", context("num_workers=1", "batch_size=2"))
    assert outcome.status == "pass"
    assert outcome.summary.startswith("a batch of 2 came after ")
    assert outcome.measured["first_batch_s"] > 0
    assert workers() == []


def test_no_workers_are_no_reason_to_skip():
    outcome = CHECK.run(context("num_workers=0", "batch_size=2"))
    assert outcome.status == "pass"
    assert "from the process itself, as num_workers is 0" in outcome.summary


def test_a_slow_start_is_warned_of():
    found = CHECK.run(context("num_workers=0", "batch_size=2"), slow_s=0.0)
    assert found.status == "warn"
    assert found.summary.endswith("every start and every resume waits for that")


def test_a_hang_names_the_line_and_leaves_no_process():
    found = CHECK.run(loading(Sleepy()), timeout_s=1.0)
    assert found.status == "fail"
    assert found.summary.startswith("no batch came from the loader's 2 worker(s) within 1 s; worker 0 is at ")
    assert found.summary.endswith("in __getitem__: time.sleep(600)")
    assert "Likely causes: " in found.hint.text
    assert found.hint.commands[0].endswith("--set num_workers=0")
    assert [line.partition(" (pid")[0] for line in found.evidence if line.startswith("worker")] == [
        "worker 0",
        "worker 1",
    ]
    assert workers() == []


def test_a_killed_worker_fails_it_and_spares_those_who_would_meet_it_again():
    wanted = ("loader.first-batch", "memory.workers", "loader.throughput")
    # Not data.sample, which would read one in this process.
    checks = [
        dataclasses.replace(check, requires=tuple(set(check.requires) & set(wanted)))
        for check in CHECKLIST
        if check.id in wanted
    ]
    results = run_checks(checks, loading(Suicidal()), max_parallel=1)
    by_id = {result.check.id: result for result in results}
    assert [by_id[name].status for name in wanted] == ["fail", "skip", "skip"]
    assert "was killed by SIGKILL" in by_id["loader.first-batch"].outcome.summary
    assert workers() == []
