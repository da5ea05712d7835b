import subprocess
import sys

import pytest

from preflight.checklist import Check, Hint, Outcome, Result, failed, passed, skipped, warned


def check(**changes):
    fields = {"id": "data.present", "title": "The dataset is there", "level": "quick", "run": lambda _: passed("ok")}
    return Check(**{**fields, **changes})


def test_a_check_knows_its_category():
    assert check(id="grad.has-aux").category == "grad"


@pytest.mark.parametrize("id_", ["data", "Data.present", "data.has_aux", "data.", "data.a.b", "data.a--b", "data.a "])
def test_an_id_that_is_not_category_dot_name_is_refused(id_):
    with pytest.raises(ValueError, match=r"not of the form category\.name"):
        check(id=id_)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "fast"}, "unknown level 'fast'; the levels are quick, standard, full"),
        ({"severity": "bad"}, "unknown severity 'bad'; it is one of fail, warn"),
        ({"timeout_s": 0}, "timeout_s is 0; it must be above zero"),
        ({"timeout_s": float("nan")}, "timeout_s is nan; it must be above zero"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=f"data.present: {message}"):
        check(**changes)


def test_a_lone_string_is_no_tuple_of_ids():
    with pytest.raises(TypeError, match=r"requires must be a tuple of str, not 'env\.apis'"):
        check(requires="env.apis")


@pytest.mark.parametrize(("make", "status"), [(passed, "pass"), (warned, "warn"), (failed, "fail"), (skipped, "skip")])
def test_constructors_carry_every_detail(make, status):
    hint = Hint(text="do this", commands=["a", "b"], url="https://example.org")
    outcome = make("seen", measured={"n": 1}, expected={"n": 2}, evidence=["one", "two"], hint=hint)
    assert outcome == Outcome(
        status=status, summary="seen", measured={"n": 1}, expected={"n": 2}, evidence=("one", "two"), hint=hint
    )
    assert outcome.hint.commands == ("a", "b")


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"evidence": "one line"}, "evidence must be a tuple of str, not 'one line'"),
        ({"hint": "try again"}, "hint must be a Hint, not str"),
        ({"measured": [1]}, "measured must be a mapping"),
    ],
)
def test_an_outcome_refuses_details_of_the_wrong_type(details, message):
    with pytest.raises(TypeError, match=message):
        Outcome(status="fail", summary="seen", **details)


def test_an_unknown_status_is_refused():
    with pytest.raises(ValueError, match="unknown status 'ok'; the statuses are pass, warn, fail, skip, error"):
        Outcome(status="ok", summary="")


def test_an_ignored_result_does_not_count():
    result = Result(check=check(), outcome=failed("no"), duration_s=0.1, ignored="known")
    assert result.status == "fail"
    assert not result.counts


def test_importing_the_checklist_and_the_reports_brings_in_nothing_heavy():
    script = """
import sys
import preflight.checklist, preflight.report.text, preflight.report.document
import preflight.report.as_json, preflight.report.short, preflight.report.junit
heavy = {"jax", "flax", "torch", "lerobot", "numpy", "typer", "click", "rich"}
print(*sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []
