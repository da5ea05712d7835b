import pytest

from bench.workers_argument import parse_workers
from preflight.errors import UsageError


@pytest.mark.parametrize(("text", "counts"), [("2,4,8", (2, 4, 8)), ("0", (0,)), (" 8, 2 ", (8, 2)), ("64", (64,))])
def test_worker_counts_are_read(text: str, counts: tuple[int, ...]) -> None:
    assert parse_workers(text, cpus=2) == counts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--workers names no number."),
        (",", "--workers names no number."),
        ("2,x", "--workers 2,x: 'x' is not a whole number."),
        ("2,,4", "--workers 2,,4: '' is not a whole number."),
        ("2.5", "--workers 2.5: '2.5' is not a whole number."),
        ("-1", "-1 workers: the number cannot be negative."),
        ("2,4,2", "2 workers are named twice."),
        (
            "1000",
            "1000 workers are more than the 64 that are allowed here: 8 for each of 2 usable CPUs, and at least 64.",
        ),
    ],
)
def test_worker_counts_that_cannot_be_meant(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_workers(text, cpus=2)
    assert caught.value.message == message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_the_cap_grows_with_the_cpus() -> None:
    assert parse_workers("1000", cpus=128) == (1000,)
    with pytest.raises(UsageError, match=r"1000 workers are more than the 100 .* 8 for each of 12\.5 usable CPUs"):
        parse_workers("1000", cpus=12.5)
