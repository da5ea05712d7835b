"""One word for a whole list of results."""

from collections.abc import Iterable
from typing import Literal

from preflight.checklist.check import Result

Verdict = Literal["cleared", "cleared-with-warnings", "not-cleared"]


def verdict(results: Iterable[Result]) -> Verdict:
    """Whether the run may start.

    A failed check holds it back, and so does one that broke, since its question is open. Ignored results do not count.
    """
    statuses = {result.status for result in results if result.counts}
    if statuses & {"fail", "error"}:
        return "not-cleared"
    return "cleared-with-warnings" if "warn" in statuses else "cleared"
