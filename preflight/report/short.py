"""One line for each check that did not pass, then the verdict: for grep, chat messages and status bars."""

from collections.abc import Mapping
from typing import Any

from preflight.report.plain import printable
from preflight.report.tally import blind, tally


def render_short(document: Mapping[str, Any]) -> str:
    r"""The document of `to_document` in lines.

    Each begins with the status, then the id and a colon (`fail memory.device: ...`). A result that has no say in the
    verdict begins with `ignored-`, so that `grep '^\(fail\|error\) '` finds just what holds the run back. The last line
    begins with `verdict`.
    """
    checks = document["checks"]
    statuses = [check["status"] for check in checks]
    note = "; every check was skipped, nothing was looked at" if blind(statuses) else ""
    lines = [_line(check) for check in checks if check["status"] != "pass"]
    return "\n".join([*lines, f"verdict {document['verdict']}: {tally(statuses)}{note}", ""])


def _line(check: Mapping[str, Any]) -> str:
    line = f"{check['status']} {check['id']}: {printable(check['summary'])}"
    return line if check["ignored"] is None else f"ignored-{line} ({printable(check['ignored'])})"
