"""Which files a checkpoint is made of: listed in it before it gets its name, so that later damage can be named.

Orbax notices most of what is missing or cut short when it reads, but names the array and not the file, and does not
look at what lies beside the arrays.
"""

from __future__ import annotations

import json
from pathlib import Path

from preflight.training.folder import saved_steps
from preflight.whole_file import write_whole

NAME = "files.json"
ITEMS = ("params", "train_state")  # what a step is restored from


def list_files(step_folder: Path) -> None:
    """Writes the list of the files below the folder's items, with their sizes.

    Raises:
        OSError: It cannot be written.
    """
    sizes = {
        str(path.relative_to(step_folder)): path.stat().st_size
        for item in sorted(step_folder.iterdir())
        if item.is_dir()
        for path in sorted(item.rglob("*"))
        if path.is_file()
    }
    write_whole(step_folder / NAME, (json.dumps({"bytes": sizes}, indent=0) + "\n").encode())


def damage(step_folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, in words that name one; None where nothing is, as far as can be seen.

    No array is read. A checkpoint without a list (openpi makes none) is asked for its items' metadata alone.
    """
    for item in ITEMS:
        if not (step_folder / item / "_METADATA").is_file():
            return f"{step_folder / item / '_METADATA'} is missing"
    try:
        sizes = json.loads((step_folder / NAME).read_text(encoding="utf-8"))["bytes"]
        expected = {str(name): int(size) for name, size in sizes.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{step_folder / NAME} cannot be read ({type(error).__name__})"
    wrong = [
        f"{step_folder / name} {why}" for name, size in expected.items() if (why := _wrong(step_folder / name, size))
    ]
    return wrong[0] + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "") if wrong else None


def _wrong(path: Path, size: int) -> str | None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be looked at ({error.strerror or error})"
    return None if found == size else f"has {found:,} bytes instead of {size:,}"


def whole_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in which no damage can be seen, ascending."""
    return [step for step in saved_steps(folder) if damage(folder / str(step)) is None]
