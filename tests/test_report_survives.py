"""Whatever a check says, every report can be made from it and read back."""

import io
import json
import xml.etree.ElementTree as ET

from hypothesis import given, settings
from hypothesis import strategies as st
from report_sample import document, result
from rich.cells import cell_len

from preflight.checklist import Hint, Outcome
from preflight.report.as_json import render_json
from preflight.report.junit import render_junit
from preflight.report.short import render_short
from preflight.report.text import TextReport

# Lone surrogates, control characters and right-to-left marks among them: file names and prompts hold such things.
TEXT = st.text(st.characters(), max_size=80)
VALUES = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=20) | st.dates(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3) | st.tuples(inner),
        max_leaves=6,
    ),
    max_size=3,
)
HINTS = st.none() | st.builds(Hint, text=TEXT, commands=st.lists(TEXT, max_size=2).map(tuple), url=st.none() | TEXT)
OUTCOMES = st.builds(
    Outcome,
    status=st.sampled_from(["pass", "warn", "fail", "skip", "error"]),
    summary=TEXT,
    measured=VALUES,
    expected=VALUES,
    evidence=st.lists(TEXT, max_size=3).map(tuple),
    hint=HINTS,
)


@settings(deadline=None, max_examples=150)
@given(OUTCOMES, st.none() | TEXT)
def test_documents(outcome, ignored):
    found = document([result("a.b", outcome, ignored=ignored)])
    assert json.loads(render_json(found)) == found
    (case,) = ET.fromstring(render_junit(found).encode("utf-8")).iter("testcase")
    assert case.attrib["name"] == "a.b"
    lines = render_short(found).encode("utf-8").decode("utf-8").splitlines()
    assert len(lines) == (1 if outcome.status == "pass" else 2)
    assert lines[-1].startswith(f"verdict {found['verdict']}: ")


@settings(deadline=None, max_examples=150)
@given(OUTCOMES, st.none() | TEXT, st.integers(30, 120), st.sampled_from(["utf-8", "ascii", "cp1252"]))
def test_text(outcome, ignored, width, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    shown = result("a.b", outcome, ignored=ignored)
    report = TextReport([shown.check], stream, width=width, colour=False, status_stream=io.StringIO())
    report.on_result(shown)
    report.finish()
    lines = raw.getvalue().decode(encoding).split("\n")
    assert all(line.isprintable() for line in lines)
    if outcome.hint is None:
        assert max(map(cell_len, lines)) <= width
