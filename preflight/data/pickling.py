"""What sending a dataset to loader workers takes, and which part of one cannot be sent."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any

# A dataset that is larger than this is too large whatever its size; counting on would only take time.
COUNTED_BYTES = 2 << 30
_DEPTH = 4
_ITEMS = 64


class _Enough(Exception):  # noqa: N818 - it ends the counting
    pass


class _Counter(io.RawIOBase):
    """Counts what is written and keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        self.bytes += size
        if self.bytes > COUNTED_BYTES:
            raise _Enough
        return size


def pickled_bytes(dataset: Any) -> int | None:
    """How much a worker is sent of a dataset, and holds a copy of: its length when pickled.

    Nothing of it is kept, so that a large dataset takes time but no memory beside its own.

    Returns:
        Bytes, `COUNTED_BYTES` at most; None where it cannot be pickled.
    """
    counter = _Counter()
    try:
        ForkingPickler(counter, pickle.HIGHEST_PROTOCOL).dump(dataset)
    except _Enough:
        return COUNTED_BYTES
    except Exception:  # noqa: BLE001 - a user's __getstate__ may raise anything
        return None
    return counter.bytes


def unpicklable_part(dataset: Any) -> str | None:
    """The innermost part of an object that keeps it from being pickled, like ``transform.file (TextIOWrapper)``.

    Returns:
        None where no part can be blamed: the object's own class, for instance, is what cannot be found.
    """
    path, place = "", dataset
    for _ in range(_DEPTH):
        found = next(((name, part) for name, part in _parts(place) if not _can_be_pickled(part)), None)
        if found is None:
            break
        name, place = found
        path += name
    return f"{path.removeprefix('.')} ({type(place).__name__})" if path else None


def _parts(place: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(place, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in list(place.items())[:_ITEMS])
    elif isinstance(place, list | tuple):
        yield from ((f"[{number}]", part) for number, part in enumerate(place[:_ITEMS]))
    elif not isinstance(place, type) and "__getstate__" not in _attributes(type(place)):
        # A __getstate__ of its own may leave attributes out.
        yield from ((f".{name}", part) for name, part in getattr(place, "__dict__", {}).items())


def _attributes(kind: type) -> set[str]:
    return {name for base in kind.__mro__ if base is not object for name in vars(base)}


def _can_be_pickled(part: Any) -> bool:
    try:
        ForkingPickler(_Counter(), pickle.HIGHEST_PROTOCOL).dump(part)
    except _Enough:
        return True
    except Exception:  # noqa: BLE001 - a user's __getstate__ may raise anything
        return False
    return True
