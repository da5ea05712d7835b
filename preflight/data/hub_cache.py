"""What lies in the Hugging Face Hub's caches: snapshots of a dataset, folders of links into the files beside them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path, PurePosixPath

from preflight.data.metadata import DatasetInfo, read_info
from preflight.errors import DataError

# The order in which the names of a snapshot are preferred; "main" is what `hf download` fetches.
_NAMES = ("main", "v3.0", "v2.1", "v2.0")
_SHOWN = 7  # digits of a commit, as git shows them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One commit of a dataset, as far as it was downloaded."""

    root: Path
    names: tuple[str, ...]  # branches and tags that mean this commit; none where it was asked for by its hash
    lacks: str | None  # what is missing, at a glance; None: nothing

    def __str__(self) -> str:
        commit = f"snapshot {self.root.name[:_SHOWN]}"
        return f"{commit} of {' and '.join(self.names)}" if self.names else commit


def hf_home() -> Path:
    """`$HF_HOME`, or its default (huggingface_hub.constants), without the import."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _path(os.environ.get("HF_HOME") or f"{cache}/huggingface")


def lerobot_home() -> Path:
    """LeRobot's rule for `$HF_LEROBOT_HOME` (lerobot.utils.constants), without its import."""
    home = os.environ.get("HF_LEROBOT_HOME")
    return Path(home).expanduser() if home else hf_home() / "lerobot"


def hub_caches() -> tuple[Path, ...]:
    """The Hub's own cache (huggingface_hub.constants), then the one that LeRobot keeps for itself since 0.5."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return tuple(dict.fromkeys((_path(own) if own else hf_home() / "hub", lerobot_home() / "hub")))


def snapshots(repo_id: str) -> list[Snapshot]:
    """Lists what is in the Hub's caches of a dataset.

    Args:
        repo_id: "user/name".

    Returns:
        The best first: what is complete, has a name and was changed last; none where nothing was downloaded.
    """
    name = "--".join(["datasets", *PurePosixPath(repo_id).parts])
    found = []
    for cache in hub_caches():
        folder = cache / name / "snapshots"
        found += [snapshot for root in _folders(folder) if (snapshot := snapshot_at(root)) is not None]
    return sorted(found, key=_rank)


def snapshot_at(root: Path) -> Snapshot | None:
    """The snapshot that a folder is; None if it is none.

    Args:
        root: The folder, below `datasets--user--name/snapshots`.
    """
    if root.parent.name != "snapshots" or not root.parent.parent.name.startswith("datasets--"):
        return None
    refs = root.parent.parent / "refs"
    names = [str(path.relative_to(refs)) for path in refs.rglob("*") if _content(path) == root.name]
    return Snapshot(root=root, names=tuple(sorted(names, key=_name_rank)), lacks=_lacks(root))


def _lacks(root: Path) -> str | None:
    """What is missing at a glance; which file it is, `missing_files` says."""
    if not (root / "meta" / "info.json").exists():
        return "no meta/info.json"
    try:
        info = read_info(root)
    except DataError:
        return None  # it is there, and whoever reads it says what is wrong with it
    data, videos = _count(root, info.data_path, ".parquet"), _count(root, info.video_path, ".mp4")
    return _short_of(info, data, "parquet file", 1) or _short_of(info, videos, "video", len(info.video_keys))


def _short_of(info: DatasetInfo, have: int, what: str, per_episode: int) -> str | None:
    if info.one_file_per_episode:
        expected = info.total_episodes * per_episode
        return f"{have:,} of {expected:,} {what}s" if have < expected else None
    # How many files hold the episodes of format v3.0, only the list of episodes says.
    return f"{have:,} {what}s of at least {per_episode}" if have < per_episode else None


def _count(root: Path, template: str | None, suffix: str) -> int:
    first = PurePosixPath(template or "{").parts[0]
    folder = root if "{" in first else root / first
    return sum(name.endswith(suffix) for _, _, names in os.walk(folder) for name in names)


def _rank(snapshot: Snapshot) -> tuple[bool, int, float]:
    first = _name_rank(snapshot.names[0])[0] if snapshot.names else len(_NAMES) + 1
    return snapshot.lacks is not None, first, -snapshot.root.stat().st_mtime


def _name_rank(name: str) -> tuple[int, str]:
    return (_NAMES.index(name) if name in _NAMES else len(_NAMES)), name


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _content(path: Path) -> str | None:
    try:
        return path.read_text().strip() if path.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None


def _path(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()
