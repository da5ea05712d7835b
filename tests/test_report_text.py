import io
import os
import pty
import re
import subprocess
import sys
import termios
from textwrap import dedent

import pytest
from report_sample import RESULTS, result
from rich.cells import cell_len

from preflight.checklist import Hint, errored, failed, passed, skipped, warned
from preflight.report.text import TextReport


def render(results=RESULTS, *, width=100, stream=None, duration_s=None, **options):
    stream = io.StringIO() if stream is None else stream
    report = TextReport([r.check for r in results], stream, width=width, status_stream=io.StringIO(), **options)
    for r in results:
        report.on_start(r.check)
        report.on_result(r)
    report.finish(duration_s=duration_s)
    return stream.getvalue() if isinstance(stream, io.StringIO) else None


GOLDEN = """\
preflight 0.1.0 · pi0_lighter_cup_trossen · native · level standard

env
  ✓ env.apis           jax 0.10.2, flax 0.12.8 and lerobot 0.4.4 have what the run calls
  ! env.open-files     1024 files may be open at once; 8 workers with 8 videos each need about 4096
                       and would stop in the first epoch
      measured  soft_limit = 1024, hard_limit = 1048576
      expected  soft_limit = 4096
      → Raise the limit in the shell that starts the run.
        $ ulimit -n 65536
  ✗ env.shared-memory  /dev/shm has 64 MiB (ignored: the cluster fixes it)

data
  ✓ data.present       47 episodes, 28413 frames in /data/g1 (2.3 s)
  ✗ data.norm-stats    no statistics for the asset [trossen]
      expected  file = assets/pi0_lighter_cup_trossen/trossen/norm_stats.json
      → Compute them once.
        $ preflight norm-stats pi0_lighter_cup_trossen
        https://example.org/norm-stats
  – data.sample        blocked by data.norm-stats
  – data.prompts       blocked by data.norm-stats

grad
  ? grad.has-aux       the check broke: KeyError: 'ema'
      │   File "step.py", line 8, in trace
      │     return state["ema"]
      │ KeyError: 'ema'

loader
  ✓ loader.throughput  142 samples/s with 8 workers (1 min 15 s)

Ran 9 checks in 1 min 18 s: 3 passed, 1 warning, 2 failed, 1 error, 2 skipped
  skipped  data.sample, data.prompts: blocked by data.norm-stats
  ignored  env.shared-memory (fail): the cluster fixes it
  added    data.present: required by data.norm-stats

Verdict: NOT CLEARED
  mend first  data.norm-stats: no statistics for the asset [trossen]
              $ preflight norm-stats pi0_lighter_cup_trossen
  then        grad.has-aux
"""


def test_golden_text():
    found = render(
        heading="preflight 0.1.0 · pi0_lighter_cup_trossen · native · level standard",
        required_by={"data.present": ("data.norm-stats",)},
        duration_s=78.12,
        colour=False,
    )
    assert found == GOLDEN


def test_a_narrow_page_puts_summaries_beneath_and_breaks_no_command():
    found = render(RESULTS[1:2] + RESULTS[4:5], width=44, colour=False)
    assert found == dedent("""\

        env
          ! env.open-files
              1024 files may be open at once; 8
              workers with 8 videos each need about
              4096 and would stop in the first epoch
              measured  soft_limit = 1024
                        hard_limit = 1048576
              expected  soft_limit = 4096
              → Raise the limit in the shell that
                starts the run.
                $ ulimit -n 65536

        data
          ✗ data.norm-stats
              no statistics for the asset [trossen]
              expected  file =
                        assets/pi0_lighter_cup_tross
                        en/trossen/norm_stats.json
              → Compute them once.
                $ preflight norm-stats pi0_lighter_cup_trossen
                https://example.org/norm-stats

        Ran 2 checks: 1 warning, 1 failed

        Verdict: NOT CLEARED
          mend first  data.norm-stats: no statistics
                      for the asset [trossen]
                      $ preflight norm-stats pi0_lighter_cup_trossen
    """)


@pytest.mark.parametrize("width", [30, 60, 100, 120])
def test_no_line_but_a_command_or_an_address_is_wider_than_the_page(width):
    wide = result("data.wide", failed("录制 " * 40, measured={"path": "/" + "x" * 300}, evidence=("数据" * 90,)))
    lines = render([*RESULTS, wide], width=width, colour=False).splitlines()
    assert max(cell_len(line) for line in lines if "$ " not in line and "https://" not in line) <= width


def test_clean_endings():
    assert render(RESULTS[:1], colour=False).endswith("\nRan 1 check: 1 passed\n\nVerdict: CLEARED\n")
    warning = result("a.b", warned("untuned", hint=Hint(text="Tune it.", commands=("cat <<EOF\nx\nEOF", "tune --all"))))
    assert render([*RESULTS[:1], warning], colour=False).endswith(
        dedent("""\
              ! a.b       untuned
                  → Tune it.
                    $ cat <<EOF
                    > x
                    > EOF
                    $ tune --all

            Ran 2 checks: 1 passed, 1 warning

            Verdict: CLEARED WITH WARNINGS
              worth a look  a.b: untuned
                            $ cat <<EOF
                            > x
                            > EOF
                            $ tune --all
            """)
    )


def test_a_verdict_that_rests_on_nothing_says_so():
    found = render([result("a.b", skipped("no GPU here"))], colour=False)
    assert "  skipped  a.b: no GPU here\n" in found
    assert found.endswith("Verdict: CLEARED, but every check was skipped: nothing was looked at\n")


def test_an_ignore_that_is_no_longer_needed():
    found = render([result("a.b", passed("fine"), ignored="was broken")], colour=False)
    assert "  ignored  a.b (passes now, so the ignore can go): was broken\n" in found


def test_long_evidence_is_cut_and_says_where_the_rest_is():
    found = render([result("a.b", failed("x", evidence=tuple(f"line {i}" for i in range(15))))], colour=False)
    assert "      │ line 11\n      │ and 3 more lines: see --format json\n" in found
    assert "line 12" not in found


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.9, ""), (1.0, " (1.0 s)"), (59.94, " (59.9 s)"), (59.96, " (1 min 00 s)"), (605, " (10 min 05 s)")],
)
def test_durations(seconds, shown):
    assert f"  ✓ a.b  fine{shown}\n" in render([result("a.b", passed("fine"), seconds)], colour=False)


def test_text_is_shown_and_never_read_as_markup_or_obeyed():
    text = "[red]boo[/red] :smile: [/] \\[x] \x1b[2J\nsecond"
    found = render([result("a.b", errored(text, evidence=(text,)))], colour=False)
    assert "  ? a.b  [red]boo[/red] :smile: [/] \\[x] \\x1b[2J second\n" in found
    assert "\x1b" not in found


def test_an_ascii_stream_gets_ascii():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    render(RESULTS, stream=stream, colour=False)
    found = raw.getvalue().decode("ascii")
    assert "  + env.apis " in found
    assert "  x data.norm-stats " in found
    assert "      | KeyError: 'ema'\n" in found
    assert "      > Compute them once.\n" in found


def strip_escapes(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_colours_change_nothing_but_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = render(colour=True)
    assert "\x1b[1;31m✗\x1b[0m \x1b[1mdata.norm-stats\x1b[0m" in coloured
    assert "\x1b[32m✓\x1b[0m env.apis" in coloured
    assert strip_escapes(coloured) == render(colour=False)


def on_a_terminal(columns=80):
    """A pair: what reads a pseudo-terminal, and a text stream that writes to it."""
    reading, writing = pty.openpty()
    termios.tcsetwinsize(writing, (24, columns))
    return open(reading, "rb", buffering=0), os.fdopen(writing, "w", encoding="utf-8")


def read(terminal, stream):
    """What has arrived; the kernel may take a while to hand it over, so it is read up to a mark."""
    stream.write("\0")
    stream.flush()
    found = b""
    while not found.endswith(b"\0"):
        found += terminal.read(65536)
    return found[:-1].decode("utf-8").replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_on_a_terminal(monkeypatch, variables, coloured):
    for name, value in {"NO_COLOR": "", "FORCE_COLOR": "", "TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    terminal, stream = on_a_terminal(columns=60)
    with terminal, stream:
        render(RESULTS[:3], width=None, stream=stream)
        found = read(terminal, stream)
    assert ("\x1b[" in found) == coloured
    assert max(len(line) for line in strip_escapes(found).splitlines() if "$ " not in line) <= 60


def test_no_colours_in_a_file_unless_forced(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert "\x1b" not in render()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[32m✓" in render()


def test_the_status_line_says_what_runs_and_goes_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal, status = on_a_terminal(columns=24)
    with terminal, status:
        first, second = RESULTS[3], RESULTS[8]
        report = TextReport([first.check, second.check], io.StringIO(), width=100, status_stream=status)
        report.on_start(first.check)
        assert read(terminal, status) == "\r\x1b[2Krunning data.present .."  # one column stays free
        report.on_start(second.check)
        assert read(terminal, status) == "\r\x1b[2Krunning loader.throughp"
        report.on_result(first)
        assert read(terminal, status) == "\r\x1b[2K\r\x1b[2Krunning loader.throughp"
        report.on_result(second)
        report.finish()
        assert set(read(terminal, status).split("\r")) == {"", "\x1b[2K"}


def test_results_are_on_the_stream_as_they_come():
    stream = io.StringIO()
    report = TextReport([r.check for r in RESULTS], stream, status_stream=io.StringIO(), heading="what", colour=False)
    assert stream.getvalue() == ""
    report.on_start(RESULTS[0].check)
    assert stream.getvalue() == "what\n"
    report.on_result(RESULTS[0])
    assert "env.apis" in stream.getvalue()


def test_a_pipe_gets_plain_text():
    script = (
        "from report_sample import RESULTS\nfrom preflight.report.text import TextReport\n"
        "report = TextReport([r.check for r in RESULTS])\n"
        "for r in RESULTS: report.on_start(r.check); report.on_result(r)\nreport.finish()"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "PYTHONIOENCODING": "utf-8"}
    environment.pop("FORCE_COLOR", None)
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=True)
    assert shown.stdout.decode("utf-8") == render(colour=False)
    assert shown.stderr == b""
