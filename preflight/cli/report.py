"""`preflight report`: what a run left, as a page or as JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from preflight.cli.options import one_of
from preflight.errors import PreflightError, UsageError

FORMATS = ("html", "json")


def report(
    run_dir: Annotated[
        Path,
        typer.Argument(metavar="RUN_DIR", help="A run's folder: <checkpoint_base_dir>/<config>/<exp_name>."),
    ],
    format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="html or json.")] = "html",  # noqa: A002
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write it there; without it, html becomes RUN_DIR/report.html and json goes to stdout.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Say how a run went, on a page or as JSON.

    Its end, success criteria, forecasts that held or not, every curve, camera views: from the run's folder alone,
    whether the run is complete, stopped, failed or still going.

    Exit codes: 0 written, whatever the run did, 2 no run folder.
    """
    from preflight.report.run_find import require_run_folder
    from preflight.report.run_report import NAME, read_report, write_report
    from preflight.whole_file import require_writable, write_whole

    one_of("--format", format, FORMATS)
    require_run_folder(run_dir)
    if output is not None:
        require_writable("--output", output)
    if format == "json":
        from preflight.report.run_document import render_run_json

        document, _ = read_report(run_dir)
        text = render_run_json(document)
        if output is None:
            sys.stdout.write(text)
        else:
            try:
                write_whole(output, text.encode())
            except OSError as error:
                raise PreflightError(f"{output} cannot be written: {error.strerror or error}") from error
        return 0
    if output is None:
        try:
            require_writable("the report", run_dir / NAME)
        except UsageError as error:
            raise UsageError(error.message, "write it elsewhere with --output FILE") from None
    sys.stdout.write(f"Report: {write_report(run_dir, output)}\n")
    return 0
