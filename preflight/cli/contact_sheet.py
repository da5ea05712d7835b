"""`--contact-sheet`: the option's file, tried before the checks and written after them."""

from __future__ import annotations

import io
import os
import queue
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflight import whole_file
from preflight.errors import DataError, PreflightError, UsageError

if TYPE_CHECKING:
    from preflight.report.contact_sheet import ContactSheet
    from preflight.runs.protocol import Run

_TIMEOUT_S = 300  # a dozen samples take seconds, and openpi opens a large dataset in a minute


def require_writable(path: Path | None, output: Path | None) -> None:
    """Tries the path of the sheet before anything is measured.

    Args:
        path: The sheet's; None where none is asked for.
        output: `--output`'s.

    Raises:
        UsageError: It cannot be written, or is no .png.
    """
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise UsageError(f"--contact-sheet {path}: the sheet is a PNG picture", f"name it {path.stem or 'sheet'}.png")
    whole_file.require_writable("--contact-sheet", path)
    if output is not None and os.path.realpath(output) == os.path.realpath(path):
        raise UsageError(f"--contact-sheet and --output are the same file, {path}")


def write_contact_sheet(run: Run, path: Path) -> None:
    """Draws the run's samples into a file, and says so on stderr; or says why there is nothing to draw."""
    from preflight.blame import one_line
    from preflight.report.contact_sheet import draw_contact_sheet
    from preflight.report.plain import printable

    try:
        sheet = _gathered(run)
        _save(draw_contact_sheet(sheet), path)
    except Exception as error:  # noqa: BLE001 - whatever it is, the verdict is given and stands
        said = error.message if isinstance(error, PreflightError) else one_line(error)
        _say(f"preflight: the contact sheet was not drawn: {printable(said)}")
        return
    failed = sum(row.failure is not None for row in sheet.rows)
    missing = f", {failed} of them could not be made" if failed else ""
    _say(f"Contact sheet: {path} ({len(sheet.rows)} samples{missing})")


def _gathered(run: Run) -> ContactSheet:
    """The samples, made in a thread that is given up on in the end: a check that hangs may hold what they wait for."""
    from preflight.cli.sheet_samples import gather

    done: queue.SimpleQueue[ContactSheet | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put(gather(run))
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that waits
            done.put(error)

    threading.Thread(target=work, name="contact sheet", daemon=True).start()
    try:
        result = done.get(timeout=_TIMEOUT_S)
    except queue.Empty:
        raise DataError(f"its samples were not made within {_TIMEOUT_S} s") from None
    if isinstance(result, Exception):
        raise result
    return result


def _save(picture: Any, path: Path) -> None:
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    whole_file.write_whole(path, encoded.getvalue())


def _say(line: str) -> None:
    with suppress(OSError, AttributeError):  # stderr may be closed, or None, for which print() would take stdout
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
