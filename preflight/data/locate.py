"""Where a dataset lies: in the folder that the config names, in LeRobot's home or in the Hugging Face Hub's cache."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from pathlib import Path

from preflight.config.schema import DataConfig
from preflight.data.hub import hf_command
from preflight.data.hub_cache import Snapshot, hf_home, lerobot_home, snapshot_at, snapshots
from preflight.errors import DataError, UsageError

# What the Hub takes for the name of a dataset (huggingface_hub.utils.validate_repo_id, without its finer points).
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Absent:
    """A dataset that is not where the run's reader looks for it."""

    repo_id: str
    place: Path  # where the reader looks
    on_hub: bool  # whether the Hub could have a dataset of that name
    found: Path | None = None  # a complete one of the same name elsewhere on this machine
    commands: tuple[str, ...] = ()  # that make the reader see it
    new_name: str | None = None  # the repo_id that it then has, where the one in the config is a path


class NotHereError(DataError):
    """A dataset named by its repo_id is not where the run's reader looks for it."""

    def __init__(self, message: str, hint: str, absent: Absent) -> None:
        super().__init__(message, hint)
        self.absent = absent

    def __reduce__(self) -> tuple[type, tuple[str, str | None, Absent]]:  # type: ignore[override]
        return type(self), (self.message, self.hint, self.absent)


def resolve_root(config: DataConfig) -> Path:
    """Finds the folder of the dataset that a native config names.

    Args:
        config: With `root`, or `repo_id`, for which LeRobot's own place comes first, $HF_LEROBOT_HOME/<repo_id>, and
            then a complete snapshot in the Hub's cache; `root` comes before both.

    Returns:
        The folder; whether it is a dataset, `read_info` says.

    Raises:
        UsageError: if neither is set or the repo_id is no "user/name".
        NotHereError: if nothing of that repo_id is on this machine, or only a part.
    """
    if config.root is not None:
        return _expanded(config.root)
    repo_id = config.repo_id
    if repo_id is None:
        raise UsageError("the data config names no dataset", "Set data.root to a folder, or data.repo_id to user/name.")
    if _is_path(repo_id):
        raise UsageError(
            f"data.repo_id must look like user/name, got {repo_id!r}",
            f"A folder is named with data.root: --set data.root={shlex.quote(repo_id)}",
        )
    place = lerobot_home() / repo_id
    if _holds_anything(place):
        return place
    cached = snapshots(repo_id)
    if cached and cached[0].lacks is None:
        return cached[0].root
    absent = Absent(repo_id=repo_id, place=place, on_hub=_HUB_NAME.fullmatch(repo_id) is not None)
    if (found := _elsewhere(repo_id, place)) is not None:
        raise NotHereError(
            f"{_missing(absent, cached)}; a dataset of that name is at {found}",
            f"Name the folder: --set data.root={shlex.quote(str(found))}",
            dataclasses.replace(absent, found=found),
        )
    if cached:
        revision = cached[0].names[0] if cached[0].names else cached[0].root.name
        command = shlex.join(hf_command("download", repo_id, "--repo-type", "dataset", "--revision", revision))
        hint = f"Download the rest: {command}"
        raise NotHereError(_missing(absent, cached), hint, dataclasses.replace(absent, commands=(command,)))
    raise NotHereError(_missing(absent, cached), _download(absent), absent)


def lerobots_root(repo_id: str) -> Path:
    """Finds the folder that LeRobot's own reader opens (0.1 to 0.4), $HF_LEROBOT_HOME/<repo_id>; an absolute path too.

    Args:
        repo_id: As the reader gets it.

    Returns:
        The folder; whether it is a dataset, `read_info` says.

    Raises:
        NotHereError: if nothing is there; says where else on this machine the dataset is, which the reader would not
            see: it would ask the Hub.
    """
    place = lerobot_home() / repo_id  # which is the repo_id itself, if that is an absolute path
    if _holds_anything(place):
        return place
    on_hub = not _is_path(repo_id) and _HUB_NAME.fullmatch(repo_id) is not None
    absent = Absent(repo_id=repo_id, place=place, on_hub=on_hub)
    cached = snapshots(repo_id) if on_hub else []
    complete = cached[0] if cached and cached[0].lacks is None else None
    found = complete.root if complete is not None else _elsewhere(repo_id, place)
    if found is None:
        raise NotHereError(_missing(absent, cached), _download(absent), absent)
    what = f"in the Hub's cache, {complete}" if complete is not None else "elsewhere"
    new_name = f"local/{found.name}" if _is_path(repo_id) else None
    commands = _linked(found, lerobot_home() / (new_name or repo_id))
    if (home := _home_of(found, repo_id)) is not None:
        commands = (f"export HF_LEROBOT_HOME={shlex.quote(str(home))}",)
    text = f"Make it visible there: {' && '.join(commands)}"
    if new_name is not None:
        text += f"; and name it by data.repo_id={shlex.quote(new_name)}"
    raise NotHereError(
        f"{repo_id} is not at {place}, where LeRobot's reader looks for it, but {what}: {found}",
        text,
        dataclasses.replace(absent, found=found, commands=commands, new_name=new_name),
    )


def how_found(root: Path) -> str | None:
    """Says which of LeRobot's and the Hub's places a dataset's folder is; None for any other folder.

    Args:
        root: The folder.
    """
    if (snapshot := snapshot_at(root)) is not None:
        return f"in the Hub's cache, {snapshot}"
    if not root.is_relative_to(lerobot_home()):
        return None
    if (target := root.resolve()) != root.absolute() and root.is_symlink():
        snapshot = snapshot_at(target)
        where = f"to {target}" if snapshot is None else f"into the Hub's cache, {snapshot}"
        return f"in LeRobot's home, a link {where}"
    return "in LeRobot's home"


def _missing(absent: Absent, cached: list[Snapshot]) -> str:
    name, place = absent.repo_id, absent.place
    if cached:
        return f"{name} is not downloaded whole: {cached[0]} in the Hub's cache has {cached[0].lacks}"
    return f"{name} is not downloaded: {place} {'is empty' if os.path.isdir(place) else 'does not exist'}"


def _download(absent: Absent) -> str:
    if not absent.on_hub:
        return "Name it as user/name, below $HF_LEROBOT_HOME."
    return f"Download it: {download_command(absent)} (or set HF_LEROBOT_HOME to where your datasets are)"


def download_command(absent: Absent, revision: str | None = None) -> str:
    """The command that puts a dataset where the run's reader looks for it.

    Args:
        absent: The dataset.
        revision: A branch or tag; None for the main branch.
    """
    tag = ["--revision", revision] if revision is not None else []
    words = ("download", absent.repo_id, "--repo-type", "dataset", *tag, "--local-dir", str(absent.place))
    return shlex.join(hf_command(*words))


def _elsewhere(repo_id: str, place: Path) -> Path | None:
    """A dataset at one of the places where people put them, or run the command from."""
    name = repo_id.rstrip("/").rpartition("/")[2]
    folders = [lerobot_home() / name, Path.cwd() / repo_id, Path.cwd() / name, Path.cwd() / "data" / name]
    if not _is_path(repo_id):
        folders.insert(0, hf_home() / "lerobot" / repo_id)  # from before HF_LEROBOT_HOME was set
    if repo_id.startswith("~"):
        folders.insert(0, Path(os.path.expanduser(repo_id)))
    # os.path where pathlib raises: none of these places needs to be readable, or a possible name.
    found = (folder for folder in folders if name and folder != place)
    return next((folder.absolute() for folder in found if os.path.isfile(folder / "meta" / "info.json")), None)


def _home_of(found: Path, repo_id: str) -> Path | None:
    """The folder below which a dataset lies by its repo_id, if that is plainly a collection of datasets."""
    if _is_path(repo_id) or "/" not in repo_id or found == Path.cwd() / repo_id:
        return None
    home = found.parents[repo_id.count("/")]
    return home if home / repo_id == found else None


def _linked(found: Path, place: Path) -> tuple[str, ...]:
    folder, link = shlex.quote(str(place.parent)), shlex.quote(str(place))
    # What a reader left that found nothing: in an existing folder ln would put the link.
    clear = (f"find {link} -type d -empty -delete",) if os.path.isdir(place) else ()
    return (f"mkdir -p {folder}", *clear, f"ln -s {shlex.quote(str(found))} {link}")


def _holds_anything(place: Path) -> bool:
    """Whether there is a file; the folders alone are what LeRobot leaves where it found nothing on the Hub."""
    if not os.path.isdir(place):
        return os.path.exists(place)
    return any(files for _, _, files in os.walk(place)) or not os.access(place, os.R_OK | os.X_OK)


def _is_path(repo_id: str) -> bool:
    return repo_id.startswith(("/", "~", ".")) or ".." in repo_id.split("/") or not repo_id.strip("/")


def _expanded(root: Path) -> Path:
    try:
        return root.expanduser()
    except RuntimeError as error:
        raise DataError(f"{root}: there is no home directory of that name", "Check the path data.root.") from error
