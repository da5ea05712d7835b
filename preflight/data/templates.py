"""The templates of file names in meta/info.json, which come from the network and are not trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from preflight.data.files import shown
from preflight.errors import DataError

_PLACEHOLDER = re.compile(r"\{(\w+)(?::(0?[0-9]{1,2})d)?\}", re.ASCII)
_MAX_LENGTH = 4096  # Linux's PATH_MAX, in bytes


def render_path(template: str, fields: Mapping[str, str | int], name: str, root: Path) -> str:
    """Fills a template in.

    Only the template is judged: a link inside the folder is the machine's own and is followed wherever it leads, as the
    Hub's cache is made of links that lead out of it.

    Args:
        template: E.g. "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet".
        fields: The values of the placeholders that the format knows.
        name: The template's key in info.json, for messages.
        root: The dataset's folder.

    Returns:
        A path relative to `root`.

    Raises:
        DataError: if the result would lie outside of `root`, or a placeholder is unknown or malformed.
    """

    # Not str.format: a template is data from the network, and format would read any attribute it asks for.
    def substitute(match: re.Match[str]) -> str:
        field, width = match.groups()
        if field not in fields:
            raise DataError(
                f"{root / 'meta' / 'info.json'}: {name} has an unknown placeholder {{{field}}} in {shown(template)}",
                f"This format knows: {', '.join(fields)}",
            )
        value = fields[field]
        if width is None:
            return str(value)
        if not isinstance(value, int):
            raise DataError(f"{root / 'meta' / 'info.json'}: {name} gives a name a width in {shown(template)}")
        return f"{value:{width}d}"

    if len(template) > _MAX_LENGTH:
        raise DataError(f"{root / 'meta' / 'info.json'}: {name} has {len(template):,} characters, no path has as many")
    rendered = _PLACEHOLDER.sub(substitute, template)
    path = PurePosixPath(rendered)
    if "{" in _PLACEHOLDER.sub("", template) or "\0" in rendered or not path.parts:
        raise DataError(f"{root / 'meta' / 'info.json'}: {name} is not a usable template: {shown(template)}")
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{root / 'meta' / 'info.json'}: {name} leads out of the dataset's folder: {shown(rendered)}")
    return rendered
