"""`python docs/generate.py [DIR]`: writes what the documentation says about commands and checks, from the code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from checks import CHECKLIST
from preflight.config.watch_rules import RULES

COMMANDS = (
    "check",
    "bench-loader",
    "train",
    "cache",
    "norm-stats",
    "report",
    "list-configs",
    "list-checks",
    "explain",
    "demo-data",
    "env",
)


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


_WATCH = """# The watch over a run

Written by `make docs` from the rules themselves.

`preflight train` looks at every step and at the machine, and says what is off: on the terminal, in the run's
`alerts.jsonl`, in wandb and in the report. A rule speaks once its condition holds over its window, not again while that
goes on, and anew only after it was well. Of several symptoms of slowness one cause is named. What a rule would need and
cannot see (no GPU, no PSS, no forecast without `--after-checks`) leaves it silent: the watch never says that all is
well.

- **note**: worth knowing. **warn**: somebody should look. **stop**: the run ends with exit code 5. A state that is not
  finite is never saved.
- The step at which a value became NaN is exact, since each step's metrics are kept for the log interval; it is told at
  the next log step.
- Where a run hangs, `hang_<step>.txt` in its folder holds the stacks of all threads and of the loader's workers. If a
  library holds Python's lock, they go to stderr instead. A hang is told of and, unless its severity is `stop`, waited
  out.

## Rules

"""
_WATCH_SETTINGS = """
## Changing them

In pyproject.toml, or without `tool.preflight.` in preflight.toml; any command refuses a mistake in it (exit code 2).

```toml
[tool.preflight.watch]
"loss.range" = false                               # off
"grad.max" = { high = 400, severity = "stop" }     # another limit, another severity
hang = { seconds = 900 }
```
"""


def watch_page() -> str:
    """Every rule of the watch."""
    parts = [_WATCH, "| rule | speaks of | severity | when |\n|---|---|---|---|\n"]
    parts += [f"| `{r.id}` | {r.title} | {r.severity} | {r.condition} |\n" for r in RULES.values()]
    parts.append("\n## Advice and limits\n")
    for rule in RULES.values():
        limits = "".join(f"- `{name}` = {limit.value:g}: {limit.meaning}\n" for name, limit in rule.limits.items())
        parts.append(f"\n### {rule.id}\n\n{rule.advice}\n" + (f"\n{limits}" if limits else ""))
    return "".join([*parts, _WATCH_SETTINGS])


PAGES = {"commands.md": commands_page, "checks.md": checks_page, "watch.md": watch_page}

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")
