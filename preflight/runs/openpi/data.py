"""The data of an openpi config: its dataset, transforms, statistics and prompts, from what is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preflight.data.locate import lerobots_root
from preflight.errors import DataError, NotCovered, PreflightError
from preflight.runs.openpi.cache import MissingTokenizer, NotCachedError, cached, fetch_command, from_cache, place_of
from preflight.runs.openpi.facts import FORMATS, facts_of
from preflight.runs.openpi.install import ONE_AT_A_TIME, openpi
from preflight.runs.openpi.open_videos import keep_videos_open
from preflight.runs.openpi.samples import HandedOver, OpenpiSamples, users_error
from preflight.runs.protocol import Prompt, Statistics, command_line

if TYPE_CHECKING:
    from preflight.runs.openpi.raw_frames import RawFrames
    from preflight.runs.openpi.transformed_frames import TransformedFrames

_FAKE = "fake"  # the repo_id of FakeDataConfig
_RLDS = "RLDS data (rlds_data_dir) is streamed by TensorFlow; preflight looks at LeRobot datasets"


class OpenpiData:
    """The data side of a run.

    Args:
        config: An `openpi.training.config.TrainConfig`.
        assignments: The overrides that are in the config already, for commands that are to be shown.
        options: Further words that a command needs to find it.
    """

    def __init__(self, config: Any, *, assignments: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> None:
        self.config = config
        self.facts = facts_of(config, assignments, options)
        self._data: Any = None
        self._dataset: OpenpiSamples | None = None
        self._frames: RawFrames | None = None

    def data_config(self) -> Any:
        """The `DataConfig`, made by the config's own factory, from what is on this machine.

        Raises:
            DataError: The factory raises; names the user's line.
        """
        if self._data is None:
            try:
                with from_cache():
                    self._data = self.config.data.create(self.config.assets_dirs, self.config.model)
            except NotCachedError as error:
                raise DataError(str(error), f"where there is a network: {fetch_command(error.url)}") from error
            except PreflightError:
                raise
            except Exception as error:
                raise users_error("the data config cannot be made", error) from error
        return self._data

    def source(self) -> Path | None:
        """`$HF_LEROBOT_HOME/<repo_id>`, as LeRobot has it; None for openpi's fake data."""
        data = self.data_config()
        if data.rlds_data_dir is not None:
            raise NotCovered(_RLDS)
        if data.repo_id == _FAKE:
            return None
        if not isinstance(data.repo_id, str):
            raise DataError(
                f"{self.facts.name} names no dataset: it is a config for inference",
                "give it one with --set data.repo_id=user/name, or choose a config for training",
            )
        return lerobots_root(data.repo_id)

    def dataset(self) -> OpenpiSamples:
        """The dataset of openpi with all transforms; opened once."""
        if self._dataset is None:
            root = self.source()
            if root is not None:
                _require_readable(root)
            data, model = self.data_config(), self.config.model
            if root is not None and data.norm_stats is None:
                found = self.statistics()
                if found.remote is not None:
                    raise DataError(
                        f"the normalisation statistics {found.remote} are not on this machine",
                        f"where there is a network: {fetch_command(found.remote)}",
                    )
                raise DataError(f"the normalisation statistics are missing: {found.path}", found.command)
            create, transform = openpi("training.data_loader", "create_torch_dataset", "transform_dataset")
            try:
                with ONE_AT_A_TIME:
                    raw = create(data, model.action_horizon, model)
                    keep_videos_open(raw)
                    apart = transform(HandedOver(), data)
                self._dataset = OpenpiSamples(transform(raw, data), root, raw=raw, transformed=apart)
            except Exception as error:
                raise users_error("openpi cannot open the dataset", error) from error
        return self._dataset

    def columns(self) -> tuple[str, ...]:
        """The keys that the repack transforms name, and the action sequences."""
        if self.source() is None:
            return ()
        data = self.data_config()
        named = [
            leaf
            for transform in data.repack_transforms.inputs
            for leaf in _leaves(getattr(transform, "structure", None))
            if leaf != "prompt"  # which is made of the task, not read
        ]
        return tuple(dict.fromkeys([*named, *data.action_sequence_keys]))

    def cameras(self) -> tuple[str, ...]:
        """The cameras that make a difference to what the model sees: each is shaded in turn."""
        if self.source() is None:
            return ()
        frames = self._raw_frames()
        plain = _made(self._transformed(frames.item(0)), "image")

        def seen(key: str) -> bool:
            image = _made(self._transformed(frames.item(0, shades={key: 0.5})), "image")
            return any(not np.array_equal(np.asarray(image[slot]), np.asarray(plain[slot])) for slot in plain)

        return tuple(key for key in frames.info.camera_keys if seen(key))

    def statistics(self, *, read: bool = True) -> Statistics:
        """The file that openpi reads, below `assets_dir/asset_id`, and where its script writes it."""
        from preflight.data import normalize

        data, assets = self.data_config(), getattr(self.config.data, "assets", None)
        folder = str(getattr(assets, "assets_dir", None) or self.config.assets_dirs)
        name = data.asset_id or data.repo_id
        url = f"{folder.rstrip('/')}/{name}"
        place = cached(url)
        path = place_of(url) / "norm_stats.json"
        written = Path(self.config.assets_dirs) / str(data.repo_id) / "norm_stats.json"
        return Statistics(
            norm="quantile" if data.use_quantile_norm else "zscore",
            # As openpi's own data configs have it (DataConfigFactory.create_base_config).
            model_norm="zscore" if self.config.model.model_type.value == "pi0" else "quantile",
            path=path,
            stats=normalize.load(path) if read and path.is_file() else None,
            elsewhere=(written,) if written.is_file() and written != path else (),
            remote=url if place is None and "://" in url else None,
            fetched="://" in url,
            command=command_line(self.facts, "norm-stats", "--write"),
            other_command=f"uv run scripts/compute_norm_stats.py --config-name {self.facts.name}",
            other_decodes=True,
        )

    def before_normalisation(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Through the repack and data transforms, with blank pictures."""
        raw = self._raw_frames()
        samples = [self._transformed(raw.item(int(frame))) for frame in frames]
        return {key: np.stack([np.asarray(_made(sample, key)) for sample in samples]) for key in ("state", "actions")}

    def all_before_normalisation(self) -> TransformedFrames:
        """The same of all frames, some hundred of them at a time."""
        from preflight.runs.openpi.transformed_frames import TransformedFrames

        return TransformedFrames(len(self._raw_frames()), self.before_normalisation)

    def prompts(self) -> dict[int, Prompt]:
        """Through all transforms up to the tokenizer, with blank pictures.

        A task that frames have and the dataset does not is left out: LeRobot's reader fails on it, whatever the prompt.
        """
        raw = self._raw_frames()
        found = {}
        for task in sorted(raw.listed_tasks().intersection(raw.used_tasks())):
            frame = raw.frame_of_task(task)
            assert frame is not None
            found[task] = self._prompt(raw.item(frame))
        return found

    def _prompt(self, item: dict[str, Any]) -> Prompt:
        transforms = openpi("transforms")
        kinds = tuple(
            kind for name in ("TokenizePrompt", "TokenizeFASTInputs") if (kind := getattr(transforms, name, None))
        )
        sample = self._normalised(item)
        for transform in self.data_config().model_transforms.inputs:
            if not isinstance(transform, kinds):
                sample = _apply(transform, sample)
                continue
            if (prompt := sample.get("prompt")) is None:
                return Prompt(text=None, num_tokens=0)
            text = prompt if isinstance(prompt, str) else str(np.asarray(prompt).item())
            return Prompt(text=text, num_tokens=self._count(transform, text, sample))
        return Prompt(text=str(sample.get("prompt", "")), num_tokens=0)  # a model that reads none

    def _count(self, transform: Any, text: str, sample: dict[str, Any]) -> int:
        tokenizer = transform.tokenizer
        if isinstance(tokenizer, MissingTokenizer):
            raise tokenizer.error
        state = np.asarray(sample["state"]) if getattr(transform, "discrete_state_input", False) else None
        if not hasattr(transform, "discrete_state_input"):  # FAST: state and actions are tokens, too
            return int(np.sum(tokenizer.tokenize(text, np.asarray(sample["state"]), np.asarray(sample["actions"]))[1]))
        # The same tokenizer with room for everything, since the mask of a full one tells no more than that it is full.
        with from_cache():
            roomy = type(tokenizer)(max(4096, 4 * self.facts.max_token_len))
        return int(np.sum(roomy.tokenize(text, state)[1]))

    def _raw_frames(self) -> RawFrames:
        if self._frames is None:
            from preflight.runs.openpi.raw_frames import RawFrames

            root, data = self.source(), self.data_config()
            if root is None:
                raise NotCovered("openpi's fake data has no frames to look at")
            _require_readable(root)
            self._frames = RawFrames(root, chunks=data.action_sequence_keys, horizon=self.config.model.action_horizon)
        return self._frames

    def _transformed(self, item: dict[str, Any]) -> dict[str, Any]:
        """A sample as it goes into the normalisation."""
        data = self.data_config()
        if data.prompt_from_task and "task" in item:
            item = {**item, "prompt": item["task"]}
        for transform in (*data.repack_transforms.inputs, *data.data_transforms.inputs):
            item = _apply(transform, item)
        return item

    def _normalised(self, item: dict[str, Any]) -> dict[str, Any]:
        data = self.data_config()
        normalize = openpi("transforms", "Normalize")
        return _apply(normalize(data.norm_stats or {}, use_quantiles=data.use_quantile_norm), self._transformed(item))

    def assets(self) -> dict[str, bytes]:
        """The normalisation statistics, where openpi's policies look for them."""
        data = self.data_config()
        if data.norm_stats is None or data.asset_id is None:
            return {}
        text = openpi("shared.normalize", "serialize_json")(data.norm_stats)
        return {f"{data.asset_id}/norm_stats.json": text.encode()}


def _require_readable(root: Path) -> None:
    """Refuses, before LeRobot is asked, what it would ask the Hub for: it makes folders and waits."""
    from preflight.data.episodes import missing_files, read_episodes
    from preflight.data.metadata import read_info

    info = read_info(root)
    if info.codebase_version not in FORMATS:
        raise DataError(
            f"{root} is in LeRobot's format {info.codebase_version}; openpi's reader opens {' and '.join(FORMATS)}",
            "convert it, or train it with --stack native",
        )
    if missing := missing_files(info, read_episodes(info), info.camera_keys):
        raise DataError(f"{len(missing)} of the dataset's files are missing or empty, the first: {missing[0]}")


def _apply(transform: Any, sample: dict[str, Any]) -> dict[str, Any]:
    try:
        return transform(sample)
    except PreflightError:
        raise
    except KeyError as error:
        key = str(error).strip("'\"")
        raise DataError(
            f"{type(transform).__name__} asks for {key!r}, which the sample does not have", _hint_of(key, sample)
        ) from error
    except Exception as error:
        raise users_error(f"{type(transform).__name__} fails", error) from error


def _hint_of(key: str, sample: dict[str, Any]) -> str:
    if key == "prompt":
        return (
            "LeRobot's frames have no prompt: take it from the dataset's tasks, base_config=DataConfig("
            "prompt_from_task=True), or leave it out of the repack transform and set a default_prompt"
        )
    from preflight.data.metadata import nearest

    return nearest(key, tuple(str(name) for name in sample))


def _made(sample: dict[str, Any], key: str) -> Any:
    if key not in sample:
        raise DataError(f"the repack and data transforms make no {key!r}", f"They make: {', '.join(map(str, sample))}")
    return sample[key]


def _leaves(structure: Any) -> list[str]:
    if isinstance(structure, dict):
        return [leaf for value in structure.values() for leaf in _leaves(value)]
    return [structure] if isinstance(structure, str) else []
