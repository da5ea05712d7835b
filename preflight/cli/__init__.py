"""The command line: one module a command; the only place that prints verdicts and picks exit codes."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

from preflight.cli.process_end import end_process
from preflight.cli.stdout import open_stdout
from preflight.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USAGE, PreflightError


def main() -> NoReturn:
    """Runs the command and ends the process with its exit code."""
    # Every stack that preflight starts is asked for speed, not for its banner.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Nothing here may wait for the network; a dataset that is not on the disk is a finding.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.stdout = stdout = open_stdout()
    try:
        code = _run()
    except KeyboardInterrupt:
        _complain("interrupted")
        code = EXIT_INTERRUPTED
    except PreflightError as error:
        _complain(f"preflight: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else ""))
        code = error.exit_code
    except Exception:  # noqa: BLE001
        import traceback

        _complain(f"{traceback.format_exc()}preflight: internal error; the lines above belong into a bug report")
        code = EXIT_INTERNAL
    stdout.flush()
    if stdout.lost is not None:
        _complain(f"preflight: the output could not be written: {stdout.lost.strerror}")
        code = code or EXIT_INTERNAL
    end_process(code)


def _run() -> int:
    from typer.main import get_command

    from preflight.cli.app import app

    command = get_command(app)
    try:
        result = command.main(standalone_mode=False)
    except Exception as error:
        # typer has its own copy of click or uses the installed one, by version: its errors are known by what they do.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return EXIT_USAGE
        if type(error).__name__ == "Abort":
            raise KeyboardInterrupt from None
        raise
    return result if isinstance(result, int) else 0


def _complain(text: str) -> None:
    with suppress(OSError, AttributeError):  # stderr may be closed, or None
        print(text, file=sys.stderr, flush=True)  # noqa: T201
