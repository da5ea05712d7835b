"""What a run was started with and cleared by, kept in its folder, so that a resume goes on with the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preflight.config.schema import TrainConfig
from preflight.errors import UsageError
from preflight.report.run_lines import read_document
from preflight.runs.native import NativeRun
from preflight.runs.protocol import Facts

_FILE = "config.json"
_CLEARANCE = "clearance.json"
# What a record means that was written before there was the setting.
_BEFORE = {"gradient_accumulation_steps": 1}
# What may change from one start to the next without making another run of it.
_FREE = (
    "name",
    "num_workers",
    "max_worker_restarts",
    "data.on_bad_sample",  # which samples are bad is learned on the way
    "data.max_skipped",
    "num_train_steps",
    "log_interval",
    "save_interval",
    "milestones",
    "project_name",
    "wandb_enabled",
    "checkpoint_base_dir",
    "fsdp_devices",  # how the state is laid out, not what it is
    "data.cache",  # where frames come from, not what they are
    "data.cache_dir",
    "weights",  # where the run started from; a resume does not read it again
)


def write_record(folder: Path, facts: Facts, num_samples: int) -> None:
    """Writes `config.json`."""
    (folder / _FILE).write_text(json.dumps(_record(facts, num_samples), indent=2) + "\n")


def require_same_run(folder: Path, facts: Facts, num_samples: int) -> None:
    """Refuses to go on with a run under another config: neither its data order nor its losses would continue.

    Raises:
        UsageError: Names the settings that differ.
    """
    try:
        kept = json.loads((folder / _FILE).read_text())
    except (OSError, ValueError):
        return  # a folder without a record, as openpi makes it: its checkpoint's shapes are all there is to compare
    now = _record(facts, num_samples)
    if facts.stack == "native":
        kept = _defaults(now) | kept
    kept = {key: value for key, value in _BEFORE.items() if key in now} | kept
    differing = [
        f"{key} is {now.get(key)!r}, was {kept.get(key)!r}"
        for key in sorted(now.keys() | kept.keys())
        if key not in _FREE and now.get(key) != kept.get(key)
    ]
    if differing:
        more = f", and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UsageError(
            f"{folder.name} was started with other settings: {'; '.join(differing[:5])}{more}",
            "resume it with the same --set options, or start a new one under another --exp-name",
        )


def write_clearance(folder: Path, clearance: dict[str, Any]) -> None:
    """Writes `clearance.json`."""
    (folder / _CLEARANCE).write_text(json.dumps(clearance, indent=2) + "\n")


def read_clearance(folder: Path) -> dict[str, Any] | None:
    """The checklist of an earlier start of this run; None where there was none, or it cannot be read."""
    return read_document(folder, _CLEARANCE, [], "")


def _defaults(now: dict[str, Any]) -> dict[str, Any]:
    """What a record means that an older version wrote, before there were some of the settings."""
    defaults = _record(NativeRun(TrainConfig(name="")).facts, num_samples=0)
    return {key: value for key, value in defaults.items() if key in now and key != "num_samples"}


def _record(facts: Facts, num_samples: int) -> dict[str, Any]:
    # Through JSON and back: tuples become the lists that a kept record has.
    return json.loads(json.dumps({"stack": facts.stack, "num_samples": num_samples, **facts.settings}))
