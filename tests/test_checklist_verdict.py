import pytest

from preflight.checklist import Check, Outcome, Result, verdict


def result(status, ignored=None):
    check = Check(id="a.b", title="", level="quick", run=lambda _: None)
    return Result(check=check, outcome=Outcome(status=status, summary=""), duration_s=0.0, ignored=ignored)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], "cleared"),
        ([result("pass"), result("skip")], "cleared"),
        ([result("pass"), result("warn")], "cleared-with-warnings"),
        ([result("fail"), result("warn")], "not-cleared"),
        ([result("error")], "not-cleared"),
        ([result("fail", "known"), result("error", "known")], "cleared"),
        ([result("fail", "known"), result("warn")], "cleared-with-warnings"),
        ([result("warn", "known")], "cleared"),
    ],
)
def test_verdict(results, expected):
    assert verdict(results) == expected
