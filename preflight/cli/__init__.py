"""The command line: one module a command; the only place that prints verdicts and picks exit codes."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from preflight.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USAGE, PreflightError


def main() -> NoReturn:
    """Runs the command and ends the process with its exit code."""
    # Every stack that preflight starts is asked for speed, not for its banner.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Nothing here may wait for the network; a dataset that is not on the disk is a finding.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        code = _run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        end_now(EXIT_INTERRUPTED)
    except PreflightError as error:
        print(f"preflight: {error.message}", file=sys.stderr)  # noqa: T201
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)  # noqa: T201
        code = error.exit_code
    except BrokenPipeError:
        # `preflight check | head`: whoever reads has enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception:  # noqa: BLE001
        import traceback

        traceback.print_exc()
        print("preflight: internal error; the lines above belong into a bug report", file=sys.stderr)  # noqa: T201
        code = EXIT_INTERNAL
    sys.exit(code)


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


def end_now(code: int) -> NoReturn:
    """Ends the process at once, with the processes that it started.

    For when a check's thread was given up on or Ctrl-C came: joining such a thread could take for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.Error:
            continue
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
