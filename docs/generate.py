"""`python docs/generate.py [DIR]`: writes what the documentation says about commands and checks, from the code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from checks import CHECKLIST

COMMANDS = ("check", "bench-loader", "train", "report", "list-configs", "list-checks", "explain", "demo-data", "env")


def commands_page() -> str:
    """Every command's `--help`."""
    program = str(Path(sys.executable).with_name("preflight"))
    parts = ["# Commands\n\nWhat `--help` says; written by `make docs`.\n"]
    for words in ((), *((command,) for command in COMMANDS)):
        done = subprocess.run(
            [program, *words, "--help"],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"},
        )
        text = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        parts.append(f"## {' '.join(('preflight', *words))}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def checks_page() -> str:
    """Every check, as `preflight explain` tells it."""
    parts = ["# Checks\n\nWritten by `make docs` from the checks themselves; `preflight explain ID` says the same.\n"]
    for check in CHECKLIST:
        facts = [f"level {check.level}", f"a miss is a {check.severity}"]
        if check.requires:
            facts.append(f"requires {', '.join(check.requires)}")
        if check.exclusive:
            facts.append("runs alone, because it measures")
        parts.append(f"## {check.id}\n\n**{check.title}.** {check.doc}\n\n*{'; '.join(facts)}*\n")
    return "\n".join(parts)


PAGES = {"commands.md": commands_page, "checks.md": checks_page}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")
