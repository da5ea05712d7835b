"""The page of a run: what is in it is shown and not obeyed, it asks nothing of a network, and browsers show it."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser

import pytest
from run_folder import SUMMARY, change, log, picture, records, run_folder

from preflight.errors import PreflightError
from preflight.report.run_draw import Drawing, draw, is_log, tick_labels
from preflight.report.run_pictures import SHOWN
from preflight.report.run_redact import WITHHELD, withhold
from preflight.report.run_report import read_report, write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&</style></svg>"
ALERT = {
    "rule": "grad.max", "severity": "warn", "step": 20, "window": [15, 20], "message": "grad_max reached 310",
    "advice": "lower the learning rate", "measured": {},
}  # fmt: skip


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} is closed where another is open"

    def handle_data(self, data):
        self.words.append(data)


def page_of(folder):
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    return page, text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole run with an alert."""
    folder = run_folder(tmp_path_factory.mktemp("page"))
    (folder / "alerts.jsonl").write_text(json.dumps(ALERT) + "\n")
    return folder


def test_the_page_says_what_the_document_says(folder):
    page, _ = page_of(folder)
    document, _ = read_report(folder)
    words = " ".join("".join(page.words).split())
    for said in (
        document["verdict"]["sentence"],
        *(row["text"] for row in document["criteria"]),
        *(row["seen"] for row in document["criteria"]),
        *(row["name"] for row in document["forecast"]),
        *document["metrics"],
        *(check["id"] for check in document["clearance"]["checks"]),
        *document["settings"],
        ALERT["message"],
        ALERT["advice"],
    ):
        assert " ".join(said.split()) in words, said
    assert page.tags.count("svg") >= len(document["metrics"]) + 5
    assert page.tags.count("img") == 4
    # GPUs are spoken of only where there are some.
    assert "GPU utilisation" not in words


def test_the_page_asks_nothing_of_a_network_and_runs_nothing(folder):
    page, text = page_of(folder)
    assert not {"script", "iframe", "object", "embed", "form", "base", "video", "audio"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith(("data:image/jpeg;base64,", "#")) or (tag, value) == ("link", "data:,")
    assert "@import" not in text
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= set(re.findall(r"url\((#[\w-]+)\)", text))
    assert ("meta", "name", "viewport") in page.attributes
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")


def test_what_comes_from_outside_is_shown_and_not_obeyed(tmp_path):
    folder = run_folder(tmp_path, summary=SUMMARY | {"exit": "failed", "reason": HOSTILE})
    change(folder, "config.json", **{"name": HOSTILE, "data.prompt": HOSTILE, HOSTILE: HOSTILE})
    clearance = json.loads((folder / "clearance.json").read_text())
    for check in clearance["checks"]:
        check |= {"id": HOSTILE, "summary": HOSTILE, "status": "warn", "ignored": HOSTILE}
        check["hint"] = {"text": HOSTILE, "commands": [HOSTILE], "url": HOSTILE}
    clearance |= {"verdict": HOSTILE, "level": HOSTILE, "target": HOSTILE, "environment": {HOSTILE: HOSTILE}}
    (folder / "clearance.json").write_text(json.dumps(clearance))
    alert = dict.fromkeys(("rule", "message", "advice", "severity"), HOSTILE) | {"measured": {HOSTILE: HOSTILE}}
    (folder / "alerts.jsonl").write_text(json.dumps(alert) + "\n")
    log(folder, [record | {HOSTILE: 1.0} for record in records(60, every=5)])
    line = json.loads((folder / "telemetry.jsonl").read_text().splitlines()[-1])
    gpu = {"index": HOSTILE, "utilization_percent": 50, "throttle_reasons": [HOSTILE]}
    (folder / "telemetry.jsonl").write_text(json.dumps(line | {"gpus": [gpu]}) + "\n")
    (folder / "wandb_id.txt").write_text(HOSTILE)
    hostile = folder.rename(folder.with_name("<b>\u202e x & y\x1b[31m"))
    page, text = page_of(hostile)
    assert "script" not in page.tags
    assert page.tags.count("img") == 4
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "".join(page.words).count("<script>alert(1)</script>") > 40
    assert page.tags.count("style") == 1


SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEBYaDHqa0AP1",
    "DB_PASSWORD": "correct horse battery",
}


def plant(folder, text):
    change(folder, "config.json", **{"data.prompt": text, "weights": text})
    change(folder, "summary.json", exit="failed", reason=text)
    clearance = json.loads((folder / "clearance.json").read_text())
    clearance["checks"][0] |= {"summary": text, "status": "fail", "evidence": [text], "measured": {"seen": [text]}}
    clearance["checks"][0]["hint"] = {"text": text, "commands": [text], "url": None}
    clearance["environment"]["said"] = text
    (folder / "clearance.json").write_text(json.dumps(clearance))
    (folder / "alerts.jsonl").write_text(json.dumps(ALERT | {"message": text, "advice": text}) + "\n")


@pytest.mark.parametrize("how", ["environment", "assignment", "key"])
def test_secrets_are_never_written(tmp_path, monkeypatch, how):
    folder = run_folder(tmp_path)
    if how == "environment":  # their bare values, which no form gives away
        for name, value in SECRETS.items():
            monkeypatch.setenv(name, value)
        plant(folder, " and ".join(SECRETS.values()))
    elif how == "assignment":
        planted = {name: value.replace(" ", "") for name, value in SECRETS.items()}
        plant(folder, " ".join(f"{name}={value}" for name, value in planted.items()))
    else:
        for name in ("config.json", "clearance.json"):
            change(folder, name, environment={"variables": SECRETS, **SECRETS}, **SECRETS)
    _, text = page_of(folder)
    document, _ = read_report(folder)
    for value in SECRETS.values():
        for written in (text, json.dumps(document)):
            assert value not in written
            assert value.replace(" ", "") not in written
    assert WITHHELD in text


def test_only_secrets_are_withheld():
    kept = {
        "model.max_token_len": 48, "data.tokenizer": "builtin", "longest_tokens": 8, "key_frame_distance": {"a": 2},
        "command": "preflight check x --set model.max_token_len=48", "commit": "cd04ecc" * 5 + "abcde",
        "file": "/home/user/tokens/a.json", "text": "Token: too long", "url": "https://example.org/a?b=c",
    }  # fmt: skip
    assert withhold(kept, {"PATH": "/usr/bin:/bin", "USER_TOKEN": "short"}) == kept
    assert withhold("https://me:pass@host/x?token=abc&a=1", {}) == f"https://{WITHHELD}host/x?token={WITHHELD}&a=1"


def test_a_long_run_makes_no_long_page(tmp_path):
    folder = run_folder(tmp_path, num_train_steps=300_000)
    spike = 123_456
    every = records(300_000, every=50, grad_max=lambda step: 999.0 if step == spike // 50 * 50 else 5.0)
    log(folder, every)
    for step in range(100, 60_000, 100):
        picture(folder / "camera_views" / f"step_{step:06d}.png", step % 5)
    page, text = page_of(folder)
    assert len(text) < 3_000_000
    assert page.tags.count("img") == SHOWN
    assert f"{SHOWN} of 603" in text
    assert "5 to 999" in "".join(page.words)


def test_pictures_that_are_none_are_named(tmp_path):
    folder = run_folder(tmp_path)
    views = folder / "camera_views"
    (views / "step_000020.png").write_bytes((views / "step_000020.png").read_bytes()[:300])
    picture(views / "step_000040.png", size=(16, 16))
    header = bytearray((views / "step_000040.png").read_bytes())
    header[16:24] = (30_000).to_bytes(4, "big") * 2
    (views / "step_000040.png").write_bytes(header)
    page, _ = page_of(folder)
    assert page.tags.count("img") == 2
    words = "".join(page.words)
    assert "camera_views/step_000020.png not shown: damaged" in words
    assert "camera_views/step_000040.png not shown: " in words


def test_a_page_that_cannot_be_written_leaves_the_old_one(folder, tmp_path):
    with pytest.raises(PreflightError, match="No such file or directory"):
        write_report(folder, tmp_path / "nowhere" / "report.html")


CURVE = {
    "x": [0.0, 1.0, 2.0], "min": [1.0, None, 3.0], "max": [1.0, None, 3.0], "mean": [1.0, None, 3.0], "broken": [1],
    "points": 3, "first": 1.0, "last": 3.0, "least": 1.0, "greatest": 3.0, "not_finite": 1, "not_finite_at": [1.0],
}  # fmt: skip


def test_a_drawing_takes_its_colours_from_the_page_and_shares_no_id():
    one, other = draw([Drawing(name="a", curves=[CURVE]), Drawing(name="b", curves=[CURVE])])
    assert one == draw([Drawing(name="a", curves=[CURVE])])[0]
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", one)
    assert "var(--series-1)" in one
    assert "var(--bad)" in one  # the cross where a value is no number
    ids = [set(re.findall(r'id="([^"]*)"', svg)) for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]*)\)", one)) <= ids[0]
    assert "<style" not in one
    assert "font-family" not in one


def test_labels_are_the_numbers_at_their_ticks():
    small = CURVE | {"min": [0.001, None, 0.0049], "max": [0.001, None, 0.0049], "mean": [0.001, None, 0.0049]}
    (svg,) = draw([Drawing(name="a", curves=[small | {"least": 0.001, "greatest": 0.0049}])])
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"0.002", "0.004"} <= set(labels)
    assert len(labels) == len(set(labels))
    assert tick_labels([0.05, 0.1, 0.15]) == ["0.05", "0.10", "0.15"]
    assert tick_labels([1804.0, 1804.5]) == ["1,804.0", "1,804.5"]
    assert tick_labels([-1.0, 0.0, 1.0]) == ["−1", "0", "1"]
    assert tick_labels([1e-7, 1e-6]) == ["1e−7", "1e−6"]
    assert tick_labels([0.1, 1.0, 100.0]) == ["0.1", "1", "100"]
    assert tick_labels([]) == []


@pytest.mark.parametrize(
    ("least", "greatest", "log"), [(0.1, 100, True), (1, 3, False), (0, 100, False), (-1, 9, False)]
)
def test_an_axis_is_logarithmic_where_that_shows_more(least, greatest, log):
    assert is_log(Drawing(name="a", curves=[CURVE | {"least": least, "greatest": greatest}])) is log


PROBE = """<!doctype html><link rel="icon" href="data:,"><body><script>
const widths = [390, 1280];
const load = width => new Promise(done => {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.src = "report.html";
  frame.onload = () => { const page = frame.contentDocument, root = page.documentElement;
    done({width, content: root.scrollWidth, height: root.scrollHeight,
          images: [...page.images].filter(i => { i.loading = "eager"; return i.src.startsWith("data:") }).length,
          pieces: [...page.querySelectorAll("svg")].every(s => s.getBoundingClientRect().width > 100),
          paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
          line: frame.contentWindow.getComputedStyle(page.querySelector("svg path[style*='series-1']")).stroke}); };
  document.body.append(frame);
});
Promise.all(widths.map(load)).then(found => { document.title = JSON.stringify(found); });
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it(folder, tmp_path, dark):
    write_report(folder, tmp_path / "report.html")
    (tmp_path / "probe.html").write_text(PROBE)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_):
            asked.append(self.path)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=5000", "--dump-dom",
            f"http://127.0.0.1:{server.server_port}/probe.html",
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        server.shutdown()
    phone, desk = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert set(asked) == {"/probe.html", "/report.html"}
    for seen in (phone, desk):
        assert seen["content"] <= seen["width"]  # the page itself never scrolls sideways
        assert seen["images"] == 4
        assert seen["pieces"]
    assert phone["height"] > desk["height"]
    paper, line = ("rgb(16, 19, 22)", "rgb(98, 179, 242)") if dark else ("rgb(250, 250, 248)", "rgb(11, 102, 168)")
    assert (phone["paper"], phone["line"]) == (paper, line)
