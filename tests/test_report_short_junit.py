import xml.etree.ElementTree as ET

from report_sample import RESULTS, document, result

from preflight.checklist import failed, passed, skipped, warned
from preflight.report.junit import render_junit
from preflight.report.short import render_short


def test_golden_short():
    assert render_short(document()) == (
        "warn env.open-files: 1024 files may be open at once; 8 workers with 8 videos each need about 4096 and would "
        "stop in the first epoch\n"
        "ignored-fail env.shared-memory: /dev/shm has 64 MiB (the cluster fixes it)\n"
        "fail data.norm-stats: no statistics for the asset [trossen]\n"
        "skip data.sample: blocked by data.norm-stats\n"
        "skip data.prompts: blocked by data.norm-stats\n"
        "error grad.has-aux: the check broke: KeyError: 'ema'\n"
        "verdict not-cleared: 3 passed, 1 warning, 2 failed, 1 error, 2 skipped\n"
    )


def test_short_when_all_is_well_is_one_line():
    assert render_short(document(RESULTS[:1])) == "verdict cleared: 1 passed\n"


def test_short_keeps_one_line_a_check_and_says_when_nothing_was_looked_at():
    assert render_short(document([result("a.b", skipped("no\nGPU\x1b[0m"))])) == (
        "skip a.b: no GPU\\x1b[0m\nverdict cleared: 1 skipped; every check was skipped, nothing was looked at\n"
    )


def test_golden_junit():
    results = [
        result("env.apis", passed("fine")),
        result("env.open-files", warned("few < many", expected={"soft_limit": 4096})),
        RESULTS[2],
        RESULTS[4],
        RESULTS[5],
        RESULTS[7],
    ]
    assert (
        render_junit(document(results))
        == """\
<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="preflight" tests="6" failures="1" errors="1" skipped="2" time="78.123">
  <testsuite name="preflight check" timestamp="2025-01-07T09:30:00Z" tests="6" failures="1" errors="1" skipped="2" \
time="78.123">
    <properties>
      <property name="preflight_version" value="0.1.0" />
      <property name="config" value="pi0_lighter_cup_trossen" />
      <property name="stack" value="native" />
      <property name="level" value="standard" />
      <property name="verdict" value="not-cleared" />
    </properties>
    <testcase classname="preflight.env" name="env.apis" time="0.01" />
    <testcase classname="preflight.env" name="env.open-files" time="0.01">
      <system-out>warning: few &lt; many
expected: soft_limit = 4096</system-out>
    </testcase>
    <testcase classname="preflight.env" name="env.shared-memory" time="0.01">
      <skipped message="ignored (the cluster fixes it); fail: /dev/shm has 64 MiB" />
    </testcase>
    <testcase classname="preflight.data" name="data.norm-stats" time="0.01">
      <failure message="no statistics for the asset [trossen]" type="fail">\
expected: file = assets/pi0_lighter_cup_trossen/trossen/norm_stats.json
Compute them once.
$ preflight norm-stats pi0_lighter_cup_trossen
https://example.org/norm-stats</failure>
    </testcase>
    <testcase classname="preflight.data" name="data.sample" time="0.0">
      <skipped message="blocked by data.norm-stats" />
    </testcase>
    <testcase classname="preflight.grad" name="grad.has-aux" time="0.01">
      <error message="the check broke: KeyError: 'ema'" type="error">  File "step.py", line 8, in trace
    return state["ema"]
KeyError: 'ema'</error>
    </testcase>
  </testsuite>
</testsuites>
"""
    )


def test_junit_shows_what_xml_cannot_hold():
    text = "a\x00b\x1b[0m\rc\ufffe & <d>\udcff 🤖\n"
    (case,) = ET.fromstring(render_junit(document([result("a.b", failed(text, evidence=(text,)))]))).iter("testcase")
    shown = "a\\x00b\\x1b[0m\\rc\\ufffe & <d>\\udcff 🤖\n"
    assert case.find("failure").attrib["message"] == shown
    assert case.find("failure").text == shown


def test_an_ignored_pass_is_a_pass_in_junit():
    root = ET.fromstring(render_junit(document([result("a.b", passed("fine"), ignored="was broken")])))
    assert root.attrib["skipped"] == "0"
    assert root.find(".//skipped") is None
