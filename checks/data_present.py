"""`data.present`: the dataset is where the config says; where it is not, what would be downloaded."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

from checks import units
from checks.context import CheckContext, with_settings
from preflight.checklist import Check, Hint, Outcome, failed, passed
from preflight.data.hub import HubDataset, hf_command
from preflight.data.locate import Absent, NotHereError, download_command, how_found
from preflight.data.metadata import read_info
from preflight.training.folder import nearest_existing

# With one file an episode and camera: from here on, the Hub's limit for those without a token is near (lerobot#1235).
_MANY_FILES = 1000
_VERSION = re.compile(r"v?(\d+)\.(\d+)(\.0)*")


def _present(context: CheckContext) -> Outcome:
    try:
        root = context.run.source()
    except NotHereError as error:
        return _absent(context, error)
    if root is None:
        return passed(f"no dataset is read: the run makes up its {len(context.run.dataset()):,} samples")
    info = read_info(root)
    measured = {"root": str(root), "codebase_version": info.codebase_version}
    summary = f"LeRobot {info.codebase_version} at {root}"
    if (how := how_found(root)) is not None:
        summary, measured = f"{summary} ({how})", measured | {"found": how}
    return passed(summary, measured=measured)


def _absent(context: CheckContext, error: NotHereError) -> Outcome:
    absent = error.absent
    measured: dict[str, Any] = {"repo_id": absent.repo_id, "looked_at": str(absent.place)}
    expected = {"root": str(absent.place)}
    if absent.found is not None:
        return failed(
            error.message,
            measured=measured | {"found": str(absent.found)},
            expected=expected,
            hint=_see(context, absent),
        )
    if not absent.on_hub:
        return failed(error.message, measured=measured, expected=expected, hint=Hint(text=error.hint or ""))
    hub = context.probes.hub(absent.repo_id)
    if isinstance(hub, str):
        many = "too many requests" in hub
        return failed(
            f"{error.message}; what would be downloaded is not known, the Hub was not heard: {hub}",
            measured=measured,
            expected=expected,
            hint=Hint(
                text="log in, then download it before the run starts" if many else "download it before the run starts",
                commands=(*(_login() if many else ()), *_download(absent)),
            ),
        )
    measured["on_hub"] = {key: value for key, value in dataclasses.asdict(hub).items() if value is not None}
    if not hub.exists:
        return failed(
            f"{error.message}, and the Hub knows no dataset {absent.repo_id} that may be seen "
            f"{'with the token that is set here' if hub.token else 'without a token'}",
            measured=measured,
            expected=expected,
            hint=Hint(
                text="check the name; if it is private, log in as someone who may read it",
                commands=(*_login(), *_download(absent)),
            ),
        )
    return _on_hub(context, error, hub, measured)


def _login() -> tuple[str, ...]:
    return (shlex.join(hf_command("auth", "login")),)


def _see(context: CheckContext, absent: Absent) -> Hint:
    """How the run's reader gets to see what is elsewhere on this machine."""
    if not absent.commands:
        return Hint(text="name the folder", commands=with_settings(context, f"data.root={absent.found}"))
    named = () if absent.new_name is None else with_settings(context, f"data.repo_id={absent.new_name}")
    return Hint(
        text="make it visible there; as it is, LeRobot asks the Hub for it when the run starts",
        commands=(*absent.commands, *named),
    )


def _on_hub(context: CheckContext, error: NotHereError, hub: HubDataset, measured: dict[str, Any]) -> Outcome:
    absent = error.absent
    evidence: list[str] = []
    steps: list[str] = []
    commands: list[str] = []
    size = "of unknown size" if hub.size_bytes is None else units.size(hub.size_bytes)
    what = [size] if hub.files is None else [f"{size} in {hub.files:,} files"]
    if hub.private:
        what.append("private")
    if hub.gated:
        what.append("gated")
        evidence.append("gated: its files are only for accounts to which its owner has granted them")
        steps.append(f"ask for access at https://huggingface.co/datasets/{absent.repo_id}")
    many = hub.files is not None and hub.files >= _MANY_FILES
    if many and not hub.token:
        evidence.append(f"{hub.files:,} requests without a token end in HTTP 429, too many requests (lerobot#1235)")
    if not hub.token and (many or hub.gated or hub.private):
        steps.append("log in")
        commands += _login()
    revision = None
    if context.run.facts.decodes_all_cameras and hub.revisions is not None:
        wanted = context.run.facts.formats[-1]
        revision, others = _revision(hub.revisions, wanted)
        if others:
            evidence.append(f"tagged {', '.join(others)} and not {wanted}: LeRobot's reader does not open that format")
            steps.append(f"look for a copy of it in format {wanted}, or convert it")
        elif revision is None:
            evidence.append(f"no version tag: LeRobot asks for {wanted} and raises RevisionNotFoundError (lerobot#790)")
            steps.append(f"its owner can tag it, if its codebase_version is {wanted}; a download needs no tag")
            call = f'HfApi().create_tag("{absent.repo_id}", tag="{wanted}", repo_type="dataset")'
            commands.append(f"python -c {shlex.quote(f'from huggingface_hub import HfApi; {call}')}")
    free = context.probes.disk_free(nearest_existing(absent.place))
    room = ""
    if hub.size_bytes is not None and hub.size_bytes > free:
        room = f", more than the {units.size(free)} that are free there"
        steps.append("make room, or set HF_LEROBOT_HOME to a larger disk")
    steps.append("download it before the run starts")
    return failed(
        f"{error.message}; on the Hub it is {', '.join(what)}{room}",
        measured=measured | {"free_gib": round(free / 2**30, 2)},
        expected={"root": str(absent.place)},
        evidence=tuple(evidence),
        hint=Hint(text="; ".join(steps), commands=(*commands, *_download(absent, revision))),
    )


def _revision(names: list[str], wanted: str) -> tuple[str | None, tuple[str, ...]]:
    """The revision that LeRobot's `get_safe_version` takes; where there is none, those of other formats."""
    tags = sorted({(int(m[1]), int(m[2])) for name in names if (m := _VERSION.fullmatch(name)) is not None})
    major, minor = (int(part) for part in wanted.removeprefix("v").split("."))
    if fitting := [tag for tag in tags if tag[0] == major and tag[1] <= minor]:
        return "v{}.{}".format(*fitting[-1]), ()
    return None, tuple("v{}.{}".format(*tag) for tag in tags)


def _download(absent: Absent, revision: str | None = None) -> tuple[str, ...]:
    return absent.commands or (download_command(absent, revision),)


CHECK = Check(
    id="data.present",
    title="The dataset is where the config says",
    level="quick",
    severity="fail",
    failures=("F14", "F15", "F16", "F50"),
    timeout_s=180,  # making the demo dataset on first use is part of it
    run=_present,
    doc="Looks for the dataset where the run's reader looks for it and reads its meta/info.json, without torch or "
    "LeRobot. A repo_id is looked for below $HF_LEROBOT_HOME; the native reader also takes a complete snapshot from "
    "the Hub's cache ($HF_HUB_CACHE, or $HF_LEROBOT_HOME/hub), which LeRobot's readers up to 0.4 do not see. Nothing "
    "is downloaded. Where the dataset is absent and the network may be used (no HF_HUB_OFFLINE), the Hub is asked, for "
    "three seconds at most: is it there, private or gated, how many files and bytes against the free disk, and has it "
    "the version tag that LeRobot asks for. All this otherwise shows up as a Hub error (401, 404, 429, "
    "RevisionNotFoundError) when the run starts.",
)
