"""`data.version`: the run's reader knows the format that the dataset is in."""

from __future__ import annotations

from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped
from preflight.data.files import read_json
from preflight.data.metadata import SUPPORTED_VERSIONS
from preflight.errors import NotCovered, PreflightError

_CONVERTER = "https://github.com/Tavish9/any4lerobot/tree/main/ds_version_convert/v30_to_v21"


def _version(context: CheckContext) -> Outcome:
    facts = context.run.facts
    try:
        root = context.run.source()
        if root is None:
            return passed("samples are made up: no dataset is read")
        path = root / "meta" / "info.json"
        info = read_json(path)
    except NotCovered:
        raise
    except PreflightError:
        return skipped("there is no meta/info.json to read: data.present says what is there")
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version not in SUPPORTED_VERSIONS:
        # Nothing here reads such a dataset, and whoever reads its metadata says so.
        return skipped(f"codebase_version is {version!r}, which preflight cannot read either: see data.present")
    measured, expected = {"codebase_version": version}, {"codebase_version": list(facts.formats)}
    if version in facts.formats:
        return passed(f"format {version}, which the {facts.stack} stack's reader opens", measured=measured)
    lines = [f"{path}: codebase_version {version}"]
    ways = [
        f"train it with the native stack (--stack native and a TOML file), which opens {_listed(SUPPORTED_VERSIONS)}"
    ]
    url = None
    if version == "v3.0":
        lines += [
            "LeRobot's reader of v2.1 warns that it is backward-compatible, misses meta/tasks.jsonl, and asks the Hub:",
            "what is shown in the end is a 401, a 404 or a RevisionNotFoundError",
        ]
        ways.insert(0, f"convert a copy of it to {facts.formats[-1]}")
        url = _CONVERTER
    return failed(
        f"the dataset is in format {version}; the {facts.stack} stack's reader opens {_listed(facts.formats)}",
        measured=measured,
        expected=expected,
        evidence=tuple(lines),
        hint=Hint(text="; or ".join(ways), url=url),
    )


def _listed(formats: tuple[str, ...]) -> str:
    return f"{', '.join(formats[:-1])} and {formats[-1]}" if len(formats) > 1 else formats[0]


CHECK = Check(
    id="data.version",
    title="The reader knows the dataset's format",
    level="quick",
    severity="fail",
    failures=("F13",),
    timeout_s=180,  # making the demo dataset on first use may be part of it
    run=_version,
    doc="Compares codebase_version in meta/info.json with the formats that the run's reader opens. The LeRobot that "
    "openpi pins reads v2.0 and v2.1; of a dataset in v3.0 it warns as if it were an older one, does not find "
    "meta/tasks.jsonl, and asks the Hub for another copy. What no stack can read, data.present refuses.",
)
