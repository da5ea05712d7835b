import json
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from enum import Enum
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from report_sample import RESULTS, document, result

from preflight.checklist import Hint, failed, skipped
from preflight.report.as_json import check_schema, render_json
from preflight.report.plain import plain, printable, spell


def validate(value):
    jsonschema.Draft202012Validator(check_schema()).validate(value)


def test_the_document_has_just_the_published_names():
    found = document()
    assert list(found) == [
        "schema_version",
        "preflight_version",
        "config",
        "stack",
        "level",
        "target",
        "verdict",
        "started_at",
        "duration_s",
        "environment",
        "checks",
    ]
    assert found["schema_version"] == 1
    assert found["verdict"] == "not-cleared"
    assert found["started_at"] == "2025-01-07T09:30:00Z"
    assert found["duration_s"] == 78.123
    assert found["checks"][4] == {
        "id": "data.norm-stats",
        "title": "A title",
        "category": "data",
        "status": "fail",
        "summary": "no statistics for the asset [trossen]",
        "measured": {},
        "expected": {"file": "assets/pi0_lighter_cup_trossen/trossen/norm_stats.json"},
        "evidence": [],
        "hint": {
            "text": "Compute them once.",
            "commands": ["preflight norm-stats pi0_lighter_cup_trossen"],
            "url": "https://example.org/norm-stats",
        },
        "duration_s": 0.01,
        "ignored": None,
    }
    assert found["checks"][0]["hint"] is None
    assert found["checks"][2]["ignored"] == "the cluster fixes it"
    assert [check["id"] for check in found["checks"]] == [r.check.id for r in RESULTS]


def test_the_schema_is_one_and_describes_every_name():
    schema = check_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    found = document()
    assert sorted(schema["required"]) == sorted(schema["properties"]) == sorted(found)
    check = schema["$defs"]["check"]
    assert sorted(check["required"]) == sorted(check["properties"]) == sorted(found["checks"][0])
    validate(found)
    validate(document([], target="H100"))


@pytest.mark.parametrize(
    "change", [{"verdict": "fine"}, {"schema_version": 2}, {"started_at": "yesterday"}, {"duration_s": "1 s"}]
)
def test_the_schema_refuses_what_is_wrong(change):
    with pytest.raises(jsonschema.ValidationError):
        validate({**document(), **change})


def test_the_schema_refuses_a_check_without_its_status():
    found = document()
    del found["checks"][0]["status"]
    with pytest.raises(jsonschema.ValidationError, match="'status' is a required property"):
        validate(found)


def test_json_survives_a_round_trip_and_is_ascii():
    found = document([result("a.b", failed("≥ 8 × \udcff", measured={"loss": math.nan}))])
    rendered = render_json(found)
    assert rendered.isascii()
    assert rendered.endswith("}\n")
    assert json.loads(rendered) == found
    assert found["checks"][0]["summary"] == "≥ 8 × \\udcff"


def test_times_are_written_in_utc_and_need_a_zone():
    berlin = timezone(timedelta(hours=1))
    assert document(started_at=datetime(2025, 1, 7, 10, 30, tzinfo=berlin))["started_at"] == "2025-01-07T09:30:00Z"
    with pytest.raises(ValueError, match="started_at has no time zone"):
        document(started_at=datetime(2025, 1, 7))


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: float
    where: Path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.float64("nan"), "nan"),
        (np.arange(4, dtype=np.int32).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array(3.0), 3.0),
        (np.dtype("float32"), "float32"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        ((1, (2.5, None)), [1, [2.5, None]]),
        (Path("/data/g1"), "/data/g1"),
        (Point(math.nan, Path("a")), {"x": "nan", "where": "a"}),
        (Colour.RED, "red"),
        ({1: {"b", "a"}, Path("k"): b"\xffz"}, {"1": ["a", "b"], "k": "\\xffz"}),
        (datetime(2025, 1, 7, tzinfo=UTC), "2025-01-07T00:00:00+00:00"),
        (date(2025, 1, 7), "2025-01-07"),
        (timedelta(minutes=2), 120.0),
        ((n for n in range(2)), [0, 1]),
        (ValueError("no"), "no"),
        (int, "<class 'int'>"),
    ],
)
def test_plain_values(value, expected):
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


def test_measured_values_reach_the_document_as_plain_ones():
    odd = failed("x", measured={"shape": (2, np.int64(3)), "loss": np.float32("inf")}, hint=Hint(text="h"))
    found = document([result("a.b", odd)])
    validate(found)
    assert found["checks"][0]["measured"] == {"shape": [2, 3], "loss": "inf"}
    assert found["checks"][0]["hint"] == {"text": "h", "commands": [], "url": None}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"num_workers": 8, "free_gib": 12.3456789}, "num_workers = 8, free_gib = 12.3457"),
        ({"shape": (2, 3), "ok": True, "limit": None}, "shape = [2, 3], ok = true, limit = none"),
        ({"std": {"left": 1e-12}}, "std = {left = 1e-12}"),
        ([1, 2], "1, 2"),
        ([], "[]"),
    ],
)
def test_values_are_spelled_for_reading(value, expected):
    assert spell(value) == expected


def test_what_a_terminal_would_act_on_is_made_visible():
    assert printable("a\x1b[31mred\x07\nb\tc\u202ed\xa0e\udcff ü×") == "a\\x1b[31mred\\x07 b c\\u202ed e\\udcff ü×"


def test_a_document_of_skips_is_cleared():
    assert document([result("a.b", skipped("no GPU"))])["verdict"] == "cleared"
