"""`loader.first-batch`: the run's own loader starts and gives a batch, in time."""

from __future__ import annotations

import time

from checks.context import CheckContext, with_settings
from preflight.checklist import Check, Hint, Outcome, failed, passed, warned
from preflight.errors import DataError, PreflightError, UsageError

# openpi's loader, whose workers each import everything anew, took 27 s on 2 cores; what is slower than that is slow.
_SLOW_S = 30.0
_TIMEOUT_S = 90.0


def _first_batch(context: CheckContext, *, timeout_s: float = _TIMEOUT_S, slow_s: float = _SLOW_S) -> Outcome:
    from preflight.data.loader import BatchLoader, start_worker_server

    facts, dataset = context.run.facts, context.run.dataset()
    if facts.num_workers:
        start_worker_server(facts.worker_modules)
    began = time.perf_counter()
    try:
        with BatchLoader(
            dataset, batch_size=facts.batch_size, num_workers=facts.num_workers, seed=facts.seed, timeout_s=timeout_s
        ) as loader:
            next(loader)
            seconds = time.perf_counter() - began
    except (DataError, UsageError):
        raise  # names the sample, or the part of the dataset; there is nothing to add
    except PreflightError as error:
        stacks = tuple(line for note in getattr(error, "__notes__", ()) for line in note.splitlines())
        fewer = () if facts.num_workers == 0 else with_settings(context, "num_workers=0")
        return failed(
            error.message,
            measured={"num_workers": facts.num_workers},
            expected={"first_batch_s": timeout_s},
            evidence=stacks,
            hint=Hint(text=f"{error.hint or ''} Without workers it can be seen in a debugger.".strip(), commands=fewer),
        )
    who = f"{facts.num_workers} workers" if facts.num_workers else "the process itself, as num_workers is 0"
    summary = f"a batch of {facts.batch_size} came after {seconds:.1f} s from {who}"
    measured = {"first_batch_s": round(seconds, 2), "num_workers": facts.num_workers}
    if seconds > slow_s:
        return warned(
            f"{summary}: every start and every resume waits for that",
            measured=measured,
            expected={"first_batch_s": slow_s},
            hint=Hint(text="what a worker imports or reads before its first sample is slow: a network file system, an "
                      "index made anew in every worker, a batch of many long videos"),
        )  # fmt: skip
    return passed(summary, measured=measured, expected={"first_batch_s": slow_s})


CHECK = Check(
    id="loader.first-batch",
    title="The loader gives its first batch",
    level="standard",
    severity="fail",
    requires=("data.sample",),
    exclusive=True,
    failures=("F28", "F44", "F52"),
    timeout_s=_TIMEOUT_S + 30,
    run=_first_batch,
    doc="Starts the run's own loader with the configured number of workers and waits for one batch: warns where that "
    f"takes more than {_SLOW_S:.0f} s, and fails after {_TIMEOUT_S:.0f} s. Every worker is then asked for its Python "
    "stack (by faulthandler, which answers even where a worker waits for a lock or a file), and the line where it "
    "stands is named with the likely causes; all workers are ended. Training's own time-out says the same.",
)
