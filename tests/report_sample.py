"""A checklist run with one of everything, for the tests of the reports."""

from datetime import UTC, datetime

from preflight.checklist import Check, Hint, Result, errored, failed, passed, skipped, warned
from preflight.report.document import to_document


def result(id_, outcome, duration_s=0.01, ignored=None, title="A title"):
    check = Check(id=id_, title=title, level="quick", run=lambda _: outcome)
    return Result(check=check, outcome=outcome, duration_s=duration_s, ignored=ignored)


RESULTS = [
    result("env.apis", passed("jax 0.10.2, flax 0.12.8 and lerobot 0.4.4 have what the run calls")),
    result(
        "env.open-files",
        warned(
            "1024 files may be open at once; 8 workers with 8 videos each need about 4096 and would stop in the first "
            "epoch",
            measured={"soft_limit": 1024, "hard_limit": 1048576},
            expected={"soft_limit": 4096},
            hint=Hint(text="Raise the limit in the shell that starts the run.", commands=("ulimit -n 65536",)),
        ),
    ),
    result("env.shared-memory", failed("/dev/shm has 64 MiB"), ignored="the cluster fixes it"),
    result("data.present", passed("47 episodes, 28413 frames in /data/g1"), 2.34),
    result(
        "data.norm-stats",
        failed(
            "no statistics for the asset [trossen]",
            expected={"file": "assets/pi0_lighter_cup_trossen/trossen/norm_stats.json"},
            hint=Hint(
                text="Compute them once.",
                commands=("preflight norm-stats pi0_lighter_cup_trossen",),
                url="https://example.org/norm-stats",
            ),
        ),
    ),
    result("data.sample", skipped("blocked by data.norm-stats"), 0.0),
    result("data.prompts", skipped("blocked by data.norm-stats"), 0.0),
    result(
        "grad.has-aux",
        errored(
            "the check broke: KeyError: 'ema'",
            evidence=('  File "step.py", line 8, in trace', '    return state["ema"]', "KeyError: 'ema'"),
        ),
    ),
    result("loader.throughput", passed("142 samples/s with 8 workers"), 75.2),
]

FACTS = {
    "config": "pi0_lighter_cup_trossen",
    "stack": "native",
    "level": "standard",
    "target": None,
    "started_at": datetime(2025, 1, 7, 9, 30, tzinfo=UTC),
    "duration_s": 78.12345,
    "environment": {"python": "3.11.7", "jax": "0.10.2"},
    "preflight_version": "0.1.0",
}


def document(results=RESULTS, **changes):
    return to_document(results, **{**FACTS, **changes})
