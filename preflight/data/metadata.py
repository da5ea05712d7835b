"""A LeRobot dataset's meta/info.json: what the dataset says about itself. Needs only json, so that it is quick."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preflight import suggest
from preflight.data.files import read_json, shown
from preflight.data.templates import render_path
from preflight.errors import DataError

SUPPORTED_VERSIONS = ("v2.0", "v2.1", "v3.0")

# Episodes a folder in format v2.x, where info.json leaves it out (LeRobot's DEFAULT_CHUNK_SIZE).
DEFAULT_CHUNKS_SIZE = 1000

# Beyond these a figure is a mistake or an attack, and what is computed from it would not fit into 64 bits or memory:
# the largest public collection (Open X-Embodiment) has some 2e6 episodes, and 1e11 frames are a century of video.
MAX_EPISODES = 10**7
MAX_FRAMES = 10**11
_MAX_AXES = 32  # NumPy's, before 2.0
_MAX_VALUES = 10**9  # of one feature in one frame
_MAX_NAME = 255  # characters of a feature's key, which is the name of a folder of videos
_FPS = (1e-3, 1e6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
    """One column or camera of a dataset."""

    dtype: str  # "float32", "int64", …; "video" and "image" for cameras
    shape: tuple[int, ...]  # of one frame's value
    names: tuple[str, ...] | None = None  # of its dimensions, flattened; None where the dataset gives none


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What meta/info.json says."""

    root: Path
    codebase_version: str  # one of SUPPORTED_VERSIONS
    fps: float  # frames a second
    total_frames: int
    total_episodes: int
    features: dict[str, Feature]
    data_path: str  # template of the parquet files' paths below root
    video_path: str | None  # template of the videos' paths below root; None without videos
    chunks_size: int  # episodes a folder in format v2.x
    robot_type: str | None

    @property
    def video_keys(self) -> tuple[str, ...]:
        """The cameras whose frames lie in video files."""
        return tuple(key for key, feature in self.features.items() if feature.dtype == "video")

    @property
    def image_keys(self) -> tuple[str, ...]:
        """The cameras whose frames lie as pictures in the parquet files."""
        return tuple(key for key, feature in self.features.items() if feature.dtype == "image")

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """All cameras, in the dataset's order."""
        return tuple(key for key, feature in self.features.items() if feature.dtype in ("video", "image"))

    @property
    def one_file_per_episode(self) -> bool:
        """Whether each episode has its own parquet file and videos, as in format v2.x."""
        return self.codebase_version.startswith("v2.")

    def data_file(self, chunk: int, file: int) -> Path:
        """Path of a parquet file.

        Args:
            chunk: Index of its folder.
            file: Its index; in format v2.x the episode's index.

        Returns:
            The path below `root`.

        Raises:
            DataError: if the template leads out of the dataset's folder or has placeholders unknown to the format.
        """
        return self.root / render_path(self.data_path, self._fields(chunk, file), "data_path", self.root)

    def video_file(self, key: str, chunk: int, file: int) -> Path:
        """Path of a video.

        Args:
            key: The camera.
            chunk: Index of its folder.
            file: Its index; in format v2.x the episode's index.

        Returns:
            The path below `root`.

        Raises:
            DataError: if the template leads out of the dataset's folder or has placeholders unknown to the format.
        """
        fields = {"video_key": key, **self._fields(chunk, file)}
        return self.root / render_path(self.video_path or "", fields, "video_path", self.root)

    def _fields(self, chunk: int, file: int) -> dict[str, str | int]:
        if self.one_file_per_episode:
            return {"episode_chunk": chunk, "episode_index": file}
        return {"chunk_index": chunk, "file_index": file}


def read_info(root: Path) -> DatasetInfo:
    """Reads what a dataset says about itself.

    Args:
        root: The dataset's folder.

    Returns:
        The content of its meta/info.json.

    Raises:
        DataError: if the folder is no dataset, or the file is damaged, of an unsupported version or has wrong types.
    """
    path = root / "meta" / "info.json"
    _require_dataset_folder(root, path)
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise DataError(f"{path}: expected an object, got {_kind(raw)}")

    version = _get(raw, "codebase_version", str, path)
    if version not in SUPPORTED_VERSIONS:
        raise DataError(
            f"{path}: dataset format {version[:40]} is not supported (supported: {', '.join(SUPPORTED_VERSIONS)})",
            "Convert it with LeRobot's own converter (lerobot.datasets.v30.convert_dataset_v21_to_v30 makes v3.0)."
            if version.startswith("v1.") or version == "v2"
            else "It may need a newer preflight.",
        )
    fps = _get(raw, "fps", (int, float), path)
    if not fps > 0 or fps == math.inf:
        raise DataError(f"{path}: fps must be positive, got {shown(fps)}")
    if not _FPS[0] <= fps <= _FPS[1]:
        raise DataError(f"{path}: fps must be between {_FPS[0]:g} and {_FPS[1]:g}, got {shown(fps)}")
    info = DatasetInfo(
        root=root,
        codebase_version=version,
        fps=float(fps),
        total_frames=_positive(raw, "total_frames", path, MAX_FRAMES),
        total_episodes=_positive(raw, "total_episodes", path, MAX_EPISODES),
        features=_features(_get(raw, "features", dict, path), path),
        data_path=_get(raw, "data_path", str, path),
        video_path=None if raw.get("video_path") is None else _get(raw, "video_path", str, path),
        chunks_size=_positive(raw, "chunks_size", path, MAX_FRAMES) if "chunks_size" in raw else DEFAULT_CHUNKS_SIZE,
        robot_type=raw["robot_type"] if isinstance(raw.get("robot_type"), str) else None,
    )
    # Rendered once now, so that a bad template is refused here and not in the middle of an epoch.
    info.data_file(0, 0)
    for key in info.video_keys:
        if info.video_path is None:
            raise DataError(f"{path}: the feature {key} is a video, but video_path is not given")
        info.video_file(key, 0, 0)
    return info


def nearest(name: str, valid: tuple[str, ...]) -> str:
    """Ends a message about an unknown name: the valid names, and a suggestion where one is really near.

    Args:
        name: The unknown name.
        valid: The names there are.

    Returns:
        A hint, e.g. "Did you mean action? The dataset has: action, observation.state".
    """
    listed = f"The dataset has: {', '.join(valid) if valid else 'none'}"
    # The last part too, so that "cam_high" finds "observation.images.cam_high" and "actions" finds "action".
    by_tail = {key.rsplit(".", 1)[-1]: key for key in valid}
    near = suggest.nearest(name, valid)
    if near is None and (tail := suggest.nearest(name.rsplit(".", 1)[-1], by_tail)) is not None:
        near = by_tail[tail]
    return f"Did you mean {near}? {listed}" if near else listed


def _require_dataset_folder(root: Path, info_path: Path) -> None:
    try:
        if not root.exists():
            siblings = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
            near = suggest.nearest(root.name, siblings, cutoff=0.6)
            hint = f"Did you mean {root.parent / near}?" if near else "Check the path, or download the dataset there."
            raise DataError(f"{root}: no such folder", hint)
        if not root.is_dir():
            raise DataError(f"{root} is a file, not a dataset's folder")
        if info_path.exists() or info_path.is_symlink():
            return
        entries = sorted(p.name for p in root.iterdir())
        inside = sorted(
            p.parent.parent.relative_to(root) for n in (1, 2) for p in root.glob("*/" * n + "meta/info.json")
        )
    except OSError as error:
        mend = f"Make it readable: chmod u+rx {root}" if isinstance(error, PermissionError) else None
        raise DataError(f"{root} cannot be read ({error.strerror})", mend) from error
    if not entries:
        raise DataError(f"{root} is empty: no LeRobot dataset", "Download the dataset there.")
    if inside:
        more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
        hint = f"These folders in it are datasets: {', '.join(map(str, inside[:5]))}{more}"
    else:
        more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
        hint = f"A LeRobot dataset has meta/info.json; found there: {', '.join(entries[:5])}{more}"
    raise DataError(f"{root} is no LeRobot dataset: it has no meta/info.json", hint)


def _features(raw: Mapping[str, Any], path: Path) -> dict[str, Feature]:
    features = {}
    for key, entry in raw.items():
        where = f"features[{shown(key)}]"
        if not key.isprintable() or len(key) > _MAX_NAME:
            raise DataError(f"{path}: {where} is no name: it is too long or has control characters")
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {where} must be an object, got {_kind(entry)}")
        dtype, shape = entry.get("dtype"), entry.get("shape")
        if not isinstance(dtype, str):
            raise DataError(f"{path}: {where}.dtype must be a string, got {_kind(dtype)}")
        if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
            raise DataError(f"{path}: {where}.shape must be a list of positive integers, got {shown(shape)}")
        if len(shape) > _MAX_AXES or math.prod(shape) > _MAX_VALUES:
            raise DataError(f"{path}: {where}.shape has more than {_MAX_VALUES:,} values, got {shown(shape)}")
        features[key] = Feature(dtype=dtype, shape=tuple(shape), names=_names(entry.get("names")))
    return features


def _names(raw: Any) -> tuple[str, ...] | None:
    """Flattens the ways that datasets write them: a list, a list of lists, an object of lists or of positions."""
    if isinstance(raw, dict):
        positions = all(type(value) is int for value in raw.values())
        raw = sorted(raw, key=lambda name: raw[name]) if positions else list(raw.values())
    if not isinstance(raw, list) or not raw:
        return None
    flat: list[str] = []
    for entry in raw:
        flat.extend(map(_name, entry) if isinstance(entry, list) else [_name(entry)])
    return tuple(flat)


def _name(entry: Any) -> str:
    return entry if isinstance(entry, str) else shown(entry)


def _get(raw: Mapping[str, Any], key: str, kind: type | tuple[type, ...], path: Path) -> Any:
    if key not in raw:
        raise DataError(f"{path}: {key} is missing")
    value = raw[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = {str: "a string", dict: "an object", int: "an integer"}.get(kind, "a number")  # type: ignore[arg-type]
        raise DataError(f"{path}: {key} must be {expected}, got {_kind(value)}")
    return value


def _positive(raw: Mapping[str, Any], key: str, path: Path, most: int) -> int:
    value = _get(raw, key, int, path)
    if value <= 0:
        raise DataError(f"{path}: {key} must be positive, got {shown(value)}")
    if value > most:
        raise DataError(f"{path}: {key} must be at most {most:,}, got {shown(value)}")
    return int(value)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds[type(value)] if type(value) in kinds else shown(value)
