"""`storage.dataset-cache`: the copy that LeRobot's reader makes of a dataset's parquet files fits on its disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checks import units
from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped
from preflight.data.metadata import read_info
from preflight.training.folder import nearest_existing

if TYPE_CHECKING:
    import pyarrow as pa

# Of a dataset's parquet files, below level full: they are of one kind, and 10 000 footers take seconds.
_FILES = 100


def _dataset_cache(context: CheckContext) -> Outcome:
    root = context.run.source()
    if root is None:
        return passed("samples are made up without a dataset: no copy is made")
    if not context.run.facts.decodes_all_cameras:
        return passed("the native reader reads the parquet files as they lie: no copy is made")
    # The reader takes every parquet file there, whatever info.json says of their names.
    paths = sorted((root / "data").rglob("*.parquet"))
    chosen = paths if context.level == "full" else paths[:: -(-len(paths) // _FILES) or 1]
    rows, num_bytes, looked_at = 0, 0.0, 0
    for done, path in enumerate(chosen, start=1):
        counted = _arrow_bytes(path)
        context.progress("parquet files", done, len(chosen))
        if counted is not None:
            rows, num_bytes, looked_at = rows + counted[0], num_bytes + counted[1], looked_at + 1
    if rows == 0:
        return skipped(f"no parquet file in {root / 'data'} could be read: how large a copy is, is not known")
    if looked_at < len(paths):
        num_bytes *= max(1.0, read_info(root).total_frames / rows)
    folder = _cache_folder(context.probes.environ)
    place = nearest_existing(folder)
    free = context.probes.disk_free(place)
    measured: dict[str, Any] = {
        "copy_gib": round(num_bytes / 2**30, 3),
        "free_gib": round(free / 2**30, 2),
        "folder": str(folder),
        "files": looked_at,
    }
    copy = (
        f"LeRobot's reader copies the parquet data into {folder}, about {units.size(num_bytes)} "
        f"({looked_at:,} of {len(paths):,} files were looked at)"
    )
    move = Hint(text="put the cache on another disk", commands=("export HF_DATASETS_CACHE=DIR",))
    if not place.is_dir():
        return failed(f"{copy}, and {place} is a file", measured=measured, hint=move)
    if num_bytes > free:
        return failed(
            f"{copy}, where {units.size(free)} are free; unless an earlier run has made the copy, which cannot be seen",
            measured=measured,
            expected={"free_gib": f"at least {measured['copy_gib']}"},
            hint=move,
        )
    return passed(f"{copy}, where {units.size(free)} are free", measured=measured)


def _cache_folder(environ: Mapping[str, str]) -> Path:
    """Where the datasets library keeps its copies (datasets.config), without its import."""
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or f"{cache}/huggingface"
    own = environ.get("HF_DATASETS_CACHE")
    return Path(own) if own else Path(home).expanduser() / "datasets"


def _arrow_bytes(path: Path) -> tuple[int, float] | None:
    """Rows of a parquet file and the bytes that they take as Arrow, from its footer; None if it cannot be read."""
    from preflight.data.parquet import open_parquet
    from preflight.errors import DataError

    try:
        with open_parquet(path) as file:
            footer, leaves = file.metadata, [leaf for field in file.schema_arrow for leaf in _leaves(field.type)]
    except DataError:
        return None  # another check names it
    total = 0.0
    for group in (footer.row_group(i) for i in range(footer.num_row_groups)):
        for j, (leaf, in_list) in enumerate(leaves):
            column = group.column(j)
            if leaf is None:
                # Text and pictures: their bytes, each with four for its length in parquet and for its offset in Arrow.
                total += column.total_uncompressed_size
            else:
                # Not the bytes that parquet has for numbers, which it stores as indices where they recur.
                total += column.num_values * leaf / 8 + group.num_rows * (4 if in_list else 0)
    return footer.num_rows, total


def _leaves(kind: pa.DataType, in_list: bool = False) -> Iterator[tuple[int | None, bool]]:
    """The columns that parquet makes of one of Arrow: bits of a value, and whether there are lists of any length."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(field.type, in_list)
    elif pa.types.is_fixed_size_list(kind):
        yield from _leaves(kind.value_type, in_list)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _leaves(kind.value_type, True)
    elif pa.types.is_map(kind):
        yield from _leaves(kind.key_type, True)
        yield from _leaves(kind.item_type, True)
    elif pa.types.is_primitive(kind):
        yield kind.bit_width, in_list
    else:
        yield None, in_list


CHECK = Check(
    id="storage.dataset-cache",
    title="The reader's copy of the dataset fits on the disk",
    level="standard",
    severity="warn",
    requires=("data.metadata",),
    failures=("F25",),
    timeout_s=180,
    run=_dataset_cache,
    doc="LeRobot's reader opens parquet files through the datasets library, which first copies all of them, numbers "
    "and pictures (not the videos), uncompressed as Arrow into $HF_DATASETS_CACHE ($HF_HOME/datasets without it): the "
    "first start is slow, and the disk may fill. The size of the copy follows from the files' footers (a hundred of "
    "them, all at level full) and is compared with the space that is free there. Whether an earlier run has left the "
    "copy cannot be seen: its name is a hash of the library's own. The native reader makes none.",
)
