"""The document as JUnit XML, which CI systems show as test results."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

from preflight.report.plain import spell

# What XML 1.0 cannot hold, even escaped (section 2.2), and the carriage return, which parsers read as a newline.
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(document: Mapping[str, Any]) -> str:
    """The document of `to_document` as one test suite with one test case a check.

    A fail is a failure, an error an error, a skip skipped. A warn passes, with its text in `system-out`. What the user
    ignores is skipped with the reason, since a failure there would stop the pipeline that was told to go on.
    """
    checks = document["checks"]
    counts = {
        "tests": len(checks),
        "failures": sum(_counted(check) == "fail" for check in checks),
        "errors": sum(_counted(check) == "error" for check in checks),
        "skipped": sum(_counted(check) == "skip" for check in checks),
        "time": document["duration_s"],
    }
    attributes = {name: str(count) for name, count in counts.items()}
    root = ET.Element("testsuites", {"name": "preflight", **attributes})
    suite = ET.SubElement(
        root, "testsuite", {"name": "preflight check", "timestamp": document["started_at"], **attributes}
    )
    properties = ET.SubElement(suite, "properties")
    for name in ("preflight_version", "config", "stack", "level", "target", "verdict"):
        if document[name] is not None:
            ET.SubElement(properties, "property", {"name": name, "value": _xml(document[name])})
    for check in checks:
        _add_case(suite, check)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _counted(check: Mapping[str, Any]) -> str:
    return "skip" if check["ignored"] is not None and check["status"] != "pass" else check["status"]


def _add_case(suite: ET.Element, check: Mapping[str, Any]) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        {"classname": f"preflight.{check['category']}", "name": check["id"], "time": str(check["duration_s"])},
    )
    status, summary = check["status"], _xml(check["summary"])
    if check["ignored"] is not None and status != "pass":
        message = _xml(f"ignored ({check['ignored']}); {status}: {check['summary']}")
        ET.SubElement(case, "skipped", {"message": message}).text = _details(check)
    elif status == "fail":
        ET.SubElement(case, "failure", {"message": summary, "type": "fail"}).text = _details(check)
    elif status == "error":
        ET.SubElement(case, "error", {"message": summary, "type": "error"}).text = _details(check)
    elif status == "skip":
        ET.SubElement(case, "skipped", {"message": summary})
    elif status == "warn":
        ET.SubElement(case, "system-out").text = f"warning: {summary}\n{_details(check)}"


def _details(check: Mapping[str, Any]) -> str:
    lines = [f"{name}: {spell(check[name])}" for name in ("measured", "expected") if check[name]]
    lines += check["evidence"]
    if (hint := check["hint"]) is not None:
        lines += [hint["text"], *(f"$ {command}" for command in hint["commands"])]
        lines += [hint["url"]] if hint["url"] else []
    return _xml("\n".join(lines))


def _xml(text: str) -> str:
    return _NOT_XML.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
