"""Camera views as they go into a page: small enough to be sent around, the first and the newest ones."""

from __future__ import annotations

import base64
import dataclasses
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from preflight.report.run_lines import Note

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 7  # the first and the six newest
_LARGEST_SIDE = 896  # pixels: four pictures of 224 beside each other
_MOST_PIXELS = 40_000_000  # of a file; beyond, it is none of ours
_MOST_BYTES = 2_000_000  # of all pictures on the page, before base64
_QUALITIES = (85, 70, 50)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture for a page."""

    step: int
    uri: str
    width: int
    height: int


def chosen(pictures: Mapping[int, Path]) -> list[int]:
    """The steps whose pictures are shown, ascending."""
    steps = sorted(pictures)
    return steps if len(steps) <= SHOWN else [steps[0], *steps[1 - SHOWN :]]


def load_pictures(pictures: Mapping[int, Path]) -> tuple[list[Picture], list[Note]]:
    """The chosen pictures as JPEG in `data:` addresses, and notes of those that could not be shown."""
    shown, notes = [], []
    steps = chosen(pictures)
    for step in steps:
        try:
            picture = _open(pictures[step])
            data = _encoded(picture, _MOST_BYTES // len(steps))
        except ValueError as error:
            notes.append(Note(f"camera_views/{pictures[step].name}", f"not shown: {error}"))
            continue
        address = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        shown.append(Picture(step, address, picture.width, picture.height))
    return shown, notes


def picture_fault(path: Path) -> str | None:
    """Why nothing is to be seen on a picture; None where something is."""
    try:
        extrema = _open(path).getextrema()
    except ValueError as error:
        return str(error)
    return "all of one colour" if all(low == high for low, high in extrema) else None  # type: ignore[misc]


def _open(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as picture:
                if picture.width * picture.height > _MOST_PIXELS:
                    raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
                small = picture.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, EOFError) as error:
        raise ValueError("damaged, or no PNG picture") from error
    except OSError as error:
        raise ValueError(error.strerror or "damaged: it ends too early") from error
    small.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    return small


def _encoded(picture: Image, most: int) -> bytes:
    for quality in _QUALITIES:
        content = io.BytesIO()
        picture.save(content, format="JPEG", quality=quality, optimize=True)
        if content.tell() <= most:
            break
    return content.getvalue()
