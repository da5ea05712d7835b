"""`preflight check`: the checklist."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from preflight.cli.options import (
    ConfigArgument,
    OpenpiOption,
    SetOption,
    StackOption,
    TargetOption,
    judged_for,
    one_of,
    open_run,
    output_file,
    output_option,
)
from preflight.errors import EXIT_CLEARED, EXIT_NOT_CLEARED, EXIT_WARNINGS, UsageError

FORMATS = ("text", "short", "json", "junit")


def check(
    config: ConfigArgument = None,
    stack: StackOption = "auto",
    level: Annotated[
        str,
        typer.Option(
            "--level",
            metavar="LEVEL",
            help="quick (files and config), standard (adds traces and a measured loader) or full.",
        ),
    ] = "standard",
    target: TargetOption = None,
    only: Annotated[list[str], typer.Option("--only", metavar="GLOB", help="Run only these checks.")] = [],  # noqa: B006
    skip: Annotated[list[str], typer.Option("--skip", metavar="GLOB", help="Leave these checks out.")] = [],  # noqa: B006
    ignore: Annotated[
        list[str],
        typer.Option("--ignore", metavar="ID=REASON", help="Show a check, but keep it out of the verdict."),
    ] = [],  # noqa: B006
    fail_on: Annotated[
        str, typer.Option("--fail-on", metavar="fail|warn", help="With warn, warnings exit with code 4.")
    ] = "fail",
    format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="text, short, json or junit.")] = "text",  # noqa: A002
    output: Annotated[
        Optional[Path],  # noqa: UP045
        output_option("Write the result there instead of to stdout."),
    ] = None,
    contact_sheet: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--contact-sheet",
            metavar="FILE.png",
            help="Draw some samples as the model receives them: pictures, prompts, ranges.",
            show_default=False,
        ),
    ] = None,
    openpi: OpenpiOption = None,
    set_: SetOption = [],  # noqa: B006
) -> int:
    """Say whether a training run will work.

    Exit codes: 0 cleared, 2 usage or config, 3 not cleared, 4 warnings under --fail-on warn.
    """
    # Imports and traces make a great many objects that stay; looking through them again and again for garbage takes a
    # sixth of the command's time. mypy sets it so, for the same reason.
    gc.set_threshold(100_000, 50, 50)
    from checks.context import CheckContext
    from preflight.checklist import select
    from preflight.cli.clearing import all_checks, clear, heading, ignores_of
    from preflight.cli.contact_sheet import require_writable, write_contact_sheet
    from preflight.report.text import TextReport

    one_of("--format", format, FORMATS)
    one_of("--fail-on", fail_on, ("fail", "warn"))
    require_writable(contact_sheet, output)
    checks = all_checks()
    selection = select(checks, level=level, only=only, skip=skip)
    run, project = open_run(config, stack, set_, openpi)
    ignores = ignores_of(project, ignore, checks)
    context = CheckContext(run=run, target=judged_for(target), expect=project.expect)

    with output_file(output) as file:
        stream = file or sys.stdout
        text = format == "text"
        # Whoever asks for a machine's format at a terminal still sees that something happens.
        shown = stream if text else sys.stderr
        report = (
            TextReport(selection.checks, shown, heading=heading(context, level), required_by=selection.required_by)
            if text or (file is not None and sys.stderr.isatty())
            else None
        )
        document = clear(context, selection, level=level, ignores=ignores, report=report)
        if not text:
            stream.write(_render(format, document))
            stream.flush()
    if contact_sheet is not None:
        write_contact_sheet(run, contact_sheet)
    code = EXIT_CLEARED
    if document["verdict"] == "not-cleared":
        code = EXIT_NOT_CLEARED
    elif document["verdict"] == "cleared-with-warnings" and fail_on == "warn":
        code = EXIT_WARNINGS
    return code


def _render(format: str, document: dict[str, object]) -> str:  # noqa: A002
    if format == "short":
        from preflight.report.short import render_short

        return render_short(document)
    if format == "junit":
        from preflight.report.junit import render_junit

        return render_junit(document)
    if format == "json":
        from preflight.report.as_json import render_json

        return render_json(document)
    raise UsageError(f"unknown format {format!r}", f"valid: {', '.join(FORMATS)}")
