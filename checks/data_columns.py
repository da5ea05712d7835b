"""The recorded columns of state and actions, gone through once for all checks that ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checks.context import CheckContext
from preflight.data.metadata import read_info

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preflight.data.column_scan import Scan


def scanned(context: CheckContext) -> Scan:
    """What all frames hold in the columns of measured values that the run asks for; it has a dataset.

    Raises:
        DataError: A file is damaged.
    """

    def scan() -> Scan:
        from preflight.data.column_scan import scan_columns, scanned_keys
        from preflight.data.episodes import read_episodes

        root = context.run.source()
        assert root is not None
        info = read_info(root)
        return scan_columns(
            info,
            read_episodes(info),
            scanned_keys(info, context.run.columns()),
            progress=lambda done, total: context.progress("frames read", done, total),
        )

    return context.once("the columns of all frames", scan)


def frame_text(context: CheckContext, frame: int) -> str:
    """Names a frame for a reader: `frame 7 of episode 0 (/data/g1/data/chunk-000/file-000.parquet)`.

    Args:
        context: Of a run with a dataset.
        frame: Counted over the dataset.
    """
    from preflight.data.column_scan import place_of_frame
    from preflight.data.episodes import read_episodes

    root = context.run.source()
    assert root is not None
    info = read_info(root)
    path, episode, within = place_of_frame(info, read_episodes(info), frame)
    return f"frame {within} of episode {episode} ({path})"


def episodes_text(context: CheckContext, positions: Sequence[int]) -> str:
    """Names episodes for a reader: `episode 3 (/data/g1/data/chunk-000/file-000.parquet) and 2 other episode(s)`.

    Args:
        context: Of a run with a dataset.
        positions: The episodes', at least one, counted in the dataset's order.
    """
    from preflight.data.episodes import read_episodes

    root = context.run.source()
    assert root is not None
    info = read_info(root)
    episodes, first = read_episodes(info), positions[0]
    path = info.data_file(int(episodes.data_chunk[first]), int(episodes.data_file[first]))
    others = f" and {len(positions) - 1} other episode(s)" if len(positions) > 1 else ""
    return f"episode {episodes.index[first]} ({path}){others}"
