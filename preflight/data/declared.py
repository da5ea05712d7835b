"""What meta/info.json says in passing (counts, splits, rates) against what is there; none of it stops a training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from preflight.data.episodes import Episodes
from preflight.data.files import shown
from preflight.data.metadata import DatasetInfo
from preflight.data.problem import Problem

_SPLIT = re.compile(r"([0-9]{1,12}):([0-9]{1,12})", re.ASCII)
# Rates are written with few digits: 29.97 for 30000/1001.
_RATE_TOLERANCE = 1e-3


def count_problems(
    info: DatasetInfo,
    raw: Mapping[str, Any],
    episodes: Episodes | None,
    num_tasks: int | None,
    *,
    lerobot_reads: bool = False,
) -> Iterator[Problem]:
    """Compares the counts that no reader needs: tasks, and in format v2.x chunks and videos.

    Args:
        info: The dataset.
        raw: The parsed info.json.
        episodes: Its episodes; None where they cannot be read.
        num_tasks: How many tasks are listed; None where they cannot be read.
        lerobot_reads: Whether it is LeRobot's reader that opens the dataset.

    Yields:
        A problem for each count that is not what is there.
    """
    path = info.root / "meta" / "info.json"
    there: dict[str, int] = {}
    if num_tasks is not None:
        there["total_tasks"] = num_tasks
    if info.one_file_per_episode:
        if "chunks_size" not in raw:
            yield Problem(
                f"{path}: chunks_size is missing, which LeRobot's reader of format v2.x needs",
                fatal=lerobot_reads,
                hint=f'Add "chunks_size": {info.chunks_size} to info.json.' if lerobot_reads else None,
            )
        if episodes is not None and len(episodes):
            there["total_chunks"] = len(set(episodes.data_chunk.tolist()))
            there["total_videos"] = len(episodes) * len(info.video_keys)
    for key, count in there.items():
        if key in raw and (type(raw[key]) is not int or raw[key] != count):
            yield Problem(f"{path}: {key} is {shown(raw[key])}, but there are {count}", fatal=False)


def split_problems(info: DatasetInfo, raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Looks whether the splits, e.g. {"train": "0:50"}, hold each episode once.

    Args:
        info: The dataset.
        raw: The parsed info.json.

    Yields:
        A problem for each split that cannot be read, and for episodes in two splits, in none, or beyond the last.
    """
    path = info.root / "meta" / "info.json"
    splits = raw.get("splits")
    if splits is None:
        return
    if not isinstance(splits, dict):
        yield Problem(f"{path}: splits must be an object like {{'train': '0:50'}}, got {shown(splits)}", fatal=False)
        return
    ranges = []
    for name, text in splits.items():
        match = _SPLIT.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[1]) > int(match[2]):
            yield Problem(f"{path}: the split {shown(name)} must be like '0:50', got {shown(text)}", fatal=False)
        else:
            ranges.append((int(match[1]), int(match[2]), name))
    at = 0
    for start, end, name in sorted(ranges):
        if start != at:
            what = f"leaves out the episodes from {at}" if start > at else f"overlaps another up to episode {at - 1}"
            yield Problem(f"{path}: the split {shown(name)}, {start}:{end}, {what}", fatal=False)
        at = max(at, end)
    if ranges and at != info.total_episodes:
        yield Problem(f"{path}: splits end at episode {at}, but there are {info.total_episodes} episodes", fatal=False)


def rate_problems(info: DatasetInfo, raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Compares the rates that features give themselves with the dataset's.

    Args:
        info: The dataset.
        raw: The parsed info.json.

    Yields:
        A problem for each feature with another rate, frames a second.
    """
    path = info.root / "meta" / "info.json"
    for key, entry in raw["features"].items():
        # "info" in today's datasets, "video_info" in those of the end of 2024.
        named = [(f"features[{shown(key)}].fps", entry.get("fps"))]
        for block in ("info", "video_info"):
            if isinstance(entry.get(block), dict):
                named.append((f"features[{shown(key)}].{block}['video.fps']", entry[block].get("video.fps")))
        for name, rate in named:
            if rate is None:
                continue
            number = isinstance(rate, int | float) and not isinstance(rate, bool)
            # In this order: what is not a number, or an integer that no float holds, cannot be subtracted.
            if not number or not 0 < rate < 2 * info.fps or abs(rate - info.fps) > _RATE_TOLERANCE * info.fps:
                yield Problem(f"{path}: {name} is {shown(rate)}, but the dataset's fps is {info.fps:g}", fatal=False)
