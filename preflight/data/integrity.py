"""Everything that is wrong with a dataset's metadata and files, in one pass that reads no page of data and no frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from preflight.data.declared import count_problems, rate_problems, split_problems
from preflight.data.episodes import Episodes, contradictions, episode_list, listed_numbers, locate_episodes
from preflight.data.files import damage, iterate_json_lines, read_json, shown
from preflight.data.footers import Layout, footer_problems
from preflight.data.metadata import DatasetInfo
from preflight.data.problem import Problem, named
from preflight.data.strays import stray_problems
from preflight.data.tasks import list_tasks, tasks_file
from preflight.errors import DataError
from preflight.telemetry.cpus import usable_cpus

Progress = Callable[[str, int, int], None]
T = TypeVar("T")

# Files that are given out to the threads at a time: pieces small enough to follow, and to end early.
_PIECE = 256
# More only fight for the interpreter's lock.
_MAX_THREADS = 8


def find_problems(
    info: DatasetInfo,
    *,
    lerobot_reads: bool = False,
    cameras: Collection[str] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[Problem]:
    """Looks for every contradiction between a dataset's metadata and its files.

    Args:
        info: The dataset.
        lerobot_reads: Whether it is LeRobot's reader that opens the dataset: it needs files that ours does not, and
            the videos of all cameras.
        cameras: Those that the run uses; None for all.
        progress: Told of the files looked at.

    Returns:
        What is wrong, the fatal first; nothing for a sound dataset.
    """
    problems: list[Problem] = []
    raw = read_json(info.root / "meta" / "info.json")
    tasks = _attempt(lambda: list_tasks(info), problems)
    episodes = _attempt(lambda: locate_episodes(info), problems)
    if tasks is not None:
        problems += _task_problems(info, tasks, lerobot_reads)
    if episodes is not None:
        problems += _episode_problems(info, episodes, lerobot_reads)
        used = info.video_keys if lerobot_reads or cameras is None else cameras
        problems += _file_problems(info, episodes, lerobot_reads, used, progress)
    problems += _statistics_problems(info, lerobot_reads)
    num_tasks = None if tasks is None else len(tasks)
    problems += count_problems(info, raw, episodes, num_tasks, lerobot_reads=lerobot_reads)
    problems += split_problems(info, raw)
    problems += rate_problems(info, raw)
    return sorted(problems, key=lambda problem: not problem.fatal)


def _attempt(read: Callable[[], T], problems: list[Problem]) -> T | None:
    try:
        return read()
    except DataError as error:
        problems.append(Problem(error.message, hint=error.hint))
        return None


def _task_problems(info: DatasetInfo, tasks: list[tuple[int, str]], lerobot_reads: bool) -> Iterator[Problem]:
    path = tasks_file(info)
    texts: dict[int, str] = {}
    indices: dict[str, int] = {}
    for index, text in tasks:
        if index in texts:
            what = "twice" if texts[index] == text else f"as {shown(texts[index])} and as {shown(text)}"
            yield Problem(f"{path} lists task {index} {what}", fatal=texts[index] != text)
        elif text and text in indices:
            yield Problem(f"{path}: tasks {indices[text]} and {index} have one text, {shown(text)}", fatal=False)
        texts.setdefault(index, text)
        indices.setdefault(text, index)
    if not info.one_file_per_episode:
        for position, (index, _) in enumerate(tasks):
            if index != position:
                yield Problem(
                    f"{path}, row {position}: task_index is {index}, and LeRobot's reader of v3.0 takes tasks by their "
                    "row: frames get another task's prompt",
                    fatal=lerobot_reads,
                )
                break


def _episode_problems(info: DatasetInfo, episodes: Episodes, lerobot_reads: bool) -> Iterator[Problem]:
    for error in contradictions(info, episodes):
        yield Problem(error.message, hint=error.hint)
    numbers = np.unique(episodes.index)
    if not len(numbers):
        return
    by_position = "LeRobot's readers take episodes by their position"
    if not info.one_file_per_episode and (wrong := np.flatnonzero(np.diff(listed_numbers(info)) < 0)).size:
        yield Problem(
            f"{episode_list(info)}, row {wrong[0] + 1}: the episodes are not in order, and {by_position}",
            fatal=lerobot_reads,
        )
    if (odd := numbers[(numbers < 0) | (numbers >= info.total_episodes)]).size:
        yield Problem(
            f"{episode_list(info)} lists {named(odd.tolist())}, but the {info.total_episodes} that info.json gives are "
            f"0 to {info.total_episodes - 1}, and {by_position}",
            fatal=lerobot_reads,
        )
    if (absent := np.setdiff1d(np.arange(min(len(episodes), info.total_episodes)), numbers)).size:
        yield Problem(
            f"{episode_list(info)} does not list {named(absent.tolist())}, and {by_position}",
            fatal=lerobot_reads,
        )


def _file_problems(
    info: DatasetInfo, episodes: Episodes, lerobot_reads: bool, cameras: Collection[str], progress: Progress
) -> Iterator[Problem]:
    data = _by_file(episodes.data_chunk, episodes.data_file)
    videos = {key: _by_file(segments.chunk, segments.file) for key, segments in episodes.videos.items()}
    paths: dict[Path, list[int]] = {info.data_file(*pair): positions for pair, positions in data.items()}
    films: dict[Path, list[int]] = {}
    camera_of: dict[Path, str] = {}
    for key, files in videos.items():
        for pair, positions in files.items():
            path = info.video_file(key, *pair)
            films[path], camera_of[path] = positions, key

    layouts: list[Layout] = []

    def look_at_data(path: Path) -> list[Problem]:
        problems = footer_problems(info, episodes, path, paths[path], layouts)
        return (_missing(path, episodes, paths[path]) or problems) if problems else []

    def look_at_video(path: Path) -> list[Problem]:
        return _missing(path, episodes, films[path])

    total = len(paths) + len(films)
    threads = min(_MAX_THREADS, max(2, math.ceil(usable_cpus().count)))
    unneeded: dict[str, list[Problem]] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="data-metadata") as pool:
        done = 0
        for look, of in ((look_at_data, paths), (look_at_video, films)):
            listed = list(of)
            for first in range(0, len(listed), _PIECE):
                piece = listed[first : first + _PIECE]
                for path, problems in zip(piece, pool.map(look, piece), strict=True):
                    camera = camera_of.get(path)
                    if camera is None or camera in cameras:
                        yield from problems
                    elif problems:
                        unneeded.setdefault(camera, []).extend(problems)
                done += len(piece)
                progress("files", done, total)
    for key, problems in unneeded.items():
        others = f"; so it is with {len(problems)} videos of this camera" if len(problems) > 1 else ""
        yield Problem(
            f"{problems[0].message}{others}",
            fatal=False,
            hint=f"This run does not use the camera {key}: nothing that it reads depends on it.",
        )
    yield from stray_problems(info, [*paths, *films], lerobot_reads=lerobot_reads)


def _by_file(chunk: np.ndarray, file: np.ndarray) -> Mapping[tuple[int, int], list[int]]:
    files: dict[tuple[int, int], list[int]] = {}
    for position, pair in enumerate(zip(chunk.tolist(), file.tolist(), strict=True)):
        files.setdefault(pair, []).append(position)
    return files


def _missing(path: Path, episodes: Episodes, positions: list[int]) -> list[Problem]:
    wrong = damage(path)
    if wrong is None:
        return []
    hint = "Fetch the dataset again; where it lies in a Git checkout: git lfs pull"
    whose = named(episodes.index[positions].tolist())
    return [Problem(f"{path} {wrong} ({whose})", hint=hint, unusable=True)]


def _statistics_problems(info: DatasetInfo, lerobot_reads: bool) -> Iterator[Problem]:
    name = "episodes_stats.jsonl" if info.codebase_version == "v2.1" else "stats.json"
    path = info.root / "meta" / name
    # LeRobot's reader of v2.1 looks on the Hub for what it does not find; of the other file it does without.
    needed = lerobot_reads and info.codebase_version == "v2.1"
    if wrong := damage(path):
        fatal = needed or (lerobot_reads and wrong != "is missing")
        if fatal:
            hint = "LeRobot's reader opens it: fetch the dataset again, or its folder meta/ alone."
        elif wrong == "is missing" and info.codebase_version != "v2.1":
            hint = "Nothing is needed: only LeRobot's reader opens it, and it does without."
        else:
            hint = "This run does not read it. LeRobot's reader does: fetch meta/ again before it trains there."
        yield Problem(f"{path} {wrong}", fatal=fatal, hint=hint)
        return
    try:
        if name == "stats.json":
            read_json(path)
            return
        # Read to the end only for the reader that does so too.
        if not lerobot_reads:
            return
        lines = sum(1 for _ in iterate_json_lines(path, max_lines=2 * info.total_episodes + 1000))
        if lines != info.total_episodes:
            yield Problem(f"{path} has {lines} lines, but info.json says {info.total_episodes} episodes")
    except DataError as error:
        yield Problem(error.message, fatal=lerobot_reads, hint=error.hint)
