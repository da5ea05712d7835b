"""The watch in a run that flies: what the machine tells reaches its files and the terminal."""

import json

from toy_run import flying_toy

from preflight.config.watch import read_watch
from preflight.training.folder import run_folder
from preflight.training.loop import train


def test_what_telemetry_tells_reaches_the_watch(tmp_path):
    said = []
    run = flying_toy(tmp_path)
    full = read_watch("x", {"disk.space": {"gib": 1e9, "saves": 1e9}})
    summary = train(run, run_folder(run.facts, "run"), watch=full, report=None, say=said.append)
    assert summary.exit == "completed"
    alerts = [json.loads(line) for line in (summary.folder / "alerts.jsonl").read_text().splitlines()]
    [alert] = [alert for alert in alerts if alert["rule"] == "disk.space"]
    assert alert["severity"] == "warn"
    assert any(line.startswith("warn: disk.space at step ") for line in said)
