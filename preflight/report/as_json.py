"""The document as JSON, and the schema that describes it."""

import json
from collections.abc import Mapping
from typing import Any


def render_json(document: Mapping[str, Any]) -> str:
    """The document of `to_document` as indented JSON, pure ASCII, with a final newline.

    Raises:
        ValueError: A number in it is not finite; `to_document` leaves none.
    """
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def check_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `check --format json`."""
    from importlib.resources import files

    return json.loads(files("preflight.report").joinpath("check.schema.json").read_text(encoding="utf-8"))
