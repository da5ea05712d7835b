"""Whether the end of an mp4 file is missing, by its boxes; nothing is decoded."""

from __future__ import annotations

from pathlib import Path

# Boxes that are looked at; a video in fragments has two for each.
MAX_BOXES = 100_000


def torn(path: Path) -> str | None:
    """Says what of an mp4 file is missing, from the lengths of its outermost boxes (ISO/IEC 14496-12, section 4.2).

    Args:
        path: A file of any kind.

    Returns:
        "its last 1,234 bytes are missing", "its index (moov) is missing" and the like; "it is no mp4 file, …"; None
        where nothing is missing or the file cannot be read.
    """
    at = 0
    names: set[bytes] = set()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            for _ in range(MAX_BOXES):
                if at + 8 > size:
                    break
                file.seek(at)
                head = file.read(16)
                if not names and head[4:8] != b"ftyp":
                    return f"it is no mp4 file, it begins with {head!r}"
                length = int.from_bytes(head[:4], "big")
                if length == 1:  # it stands after the name, in 64 bits
                    length = int.from_bytes(head[8:], "big")
                if length < 8:  # 0: the box reaches to the file's end; others are no mp4
                    length = size - at
                names.add(head[4:8])
                at += length
            else:
                return None
    except OSError:
        return None
    no_index = b"moov" not in names
    if at > size:
        return f"its last {at - size:,} bytes {'and its index (moov) ' if no_index else ''}are missing"
    return "its index (moov) is missing" if no_index else None
