"""The report of a run: read, judged and written, as a page or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preflight.errors import PreflightError
from preflight.report.run_document import run_document
from preflight.report.run_find import require_run_folder
from preflight.report.run_page import render_page
from preflight.report.run_pictures import Picture, load_pictures
from preflight.report.run_read import read_run
from preflight.whole_file import write_whole

NAME = "report.html"


def read_report(folder: Path) -> tuple[dict[str, Any], list[Picture]]:
    """What is to be said of a run, and its camera views.

    Raises:
        UsageError: The folder is none that a run was made in.
    """
    require_run_folder(folder)
    files = read_run(folder)
    pictures, notes = load_pictures(files.pictures)
    return run_document(files, more_notes=tuple(notes)), pictures


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Writes a run's page, all of it or nothing.

    Args:
        folder: The run's.
        path: The file; `report.html` in the run's folder without it.

    Returns:
        The file.

    Raises:
        UsageError: The folder is none that a run was made in.
        PreflightError: The file cannot be written.
    """
    path = folder / NAME if path is None else path
    document, pictures = read_report(folder)
    try:
        write_whole(path, render_page(document, pictures).encode())
    except OSError as error:
        raise PreflightError(f"{path} cannot be written: {error.strerror or error}") from error
    return path
