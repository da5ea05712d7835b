"""Files in a dataset's folder that no episode names. LeRobot's readers take some of them for frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from preflight.data.metadata import DatasetInfo
from preflight.data.problem import Problem

# What `datasets.load_dataset` passes over (FILES_TO_IGNORE in datasets/data_files.py of version 4).
_IGNORED = {
    "README.md",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dummy_data.zip",
    "dataset_dict.json",
}


def stray_problems(info: DatasetInfo, expected: Iterable[Path], *, lerobot_reads: bool) -> Iterator[Problem]:
    """Looks for files that no episode names.

    LeRobot's reader of formats v2.x hands the folder data/ to `datasets.load_dataset`, which reads every file in it as
    parquet, whatever its name and depth, hidden ones and a few others left out. That of v3.0 reads data/*/*.parquet.

    Args:
        info: The dataset.
        expected: All files that episodes name, as `DatasetInfo.data_file` and `video_file` give them.
        lerobot_reads: Whether it is LeRobot's reader that opens the dataset.

    Yields:
        A problem for each folder with strays: fatal where their rows become frames.
    """
    known = {os.fspath(path) for path in expected}
    read: dict[str, list[str]] = {}
    left: dict[str, list[str]] = {}
    data, videos = os.fspath(info.root / "data"), os.fspath(info.root / "videos")
    for path, wrong in _files(data):
        if wrong:
            yield Problem(f"{path} {wrong}")
        elif path not in known:
            parts = path[len(data) + 1 :].split(os.sep)
            if _is_read(info, parts):
                read.setdefault(os.path.dirname(path), []).append(path)
            elif path.endswith(".parquet") and not _is_hidden(parts):
                left.setdefault(os.path.dirname(path), []).append(path)
    for path, wrong in _files(videos):
        if wrong:
            yield Problem(f"{path} {wrong}")
        elif path not in known and path.endswith(".mp4") and not _is_hidden(path[len(videos) + 1 :].split(os.sep)):
            left.setdefault(os.path.dirname(path), []).append(path)
    for folder, paths in sorted(read.items()):
        # Ours reads what the episodes name, but whoever shares the dataset or trains it with LeRobot gets the rest too.
        fatal = lerobot_reads or any(".parquet" in os.path.basename(path) for path in paths)
        yield Problem(
            f"{_listed(folder, paths)} by no episode, but LeRobot's reader takes what is there for frames",
            fatal=fatal,
            hint="Move files that no episode names out of the dataset's folder data/.",
        )
    for folder, paths in sorted(left.items()):
        yield Problem(f"{_listed(folder, paths)} by no episode", fatal=False, hint="Nothing reads it: it can go.")


def _is_read(info: DatasetInfo, parts: list[str]) -> bool:
    if info.one_file_per_episode:
        return not _is_hidden(parts) and parts[-1] not in _IGNORED
    return len(parts) == 2 and parts[-1].endswith(".parquet")


def _is_hidden(parts: list[str]) -> bool:
    return any(part.startswith((".", "__")) for part in parts)


def _listed(folder: str, paths: list[str]) -> str:
    if len(paths) == 1:
        return f"{paths[0]} is named"
    return f"{min(paths)} and {len(paths) - 1} more file(s) in {folder} are named"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _files(top: str) -> Iterator[tuple[str, str | None]]:
    """All files below a folder, through links to folders too; and folders that cannot be listed, with the reason."""
    folders, seen = [top], set()
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)
            # A link to a folder above would be followed for ever.
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        folders.append(entry.path)
                    else:
                        yield entry.path, None
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            yield folder, "is a file, not a folder"
        except OSError as error:
            yield folder, f"cannot be read ({error.strerror})"
