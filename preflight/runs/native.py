"""The native stack: preflight's own pi0 and its own reader of LeRobot datasets."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preflight.config.lora import freeze_patterns, is_lora, with_lora, without_lora
from preflight.config.schema import DataConfig, TrainConfig
from preflight.data.dataset import SampleDataset
from preflight.data.locate import resolve_root
from preflight.data.metadata import read_info
from preflight.errors import PreflightError
from preflight.runs.protocol import Batch, Facts, Prompt, Run, Statistics, Weights, command_line

if TYPE_CHECKING:
    import jax
    import numpy as np
    import optax
    from flax import nnx
    from jaxtyping import Array, Float

    from preflight.data.normalize import NormStats
    from preflight.data.raw_values import RawFiles, RawValues
    from preflight.models.fit import Fit
    from preflight.models.pi0 import Pi0


class NativeRun:
    """A run of the native stack.

    Args:
        config: The run's config.
        reference: What to write on the command line to mean it; the config's name without it.
        assignments: The overrides that are in the config already, for commands that are to be shown.
        on_demo: Called with (done, total) frames while the demo dataset is made on first use.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        reference: str | None = None,
        assignments: tuple[str, ...] = (),
        on_demo: Any = None,
    ) -> None:
        self.config = config
        self.facts = _facts(config, reference or config.name, assignments)
        self._on_demo = on_demo
        self._source: Path | None = None
        self._dataset: SampleDataset | None = None
        self._raw: RawValues | None = None

    def keys(self) -> tuple[jax.Array, jax.Array]:
        """One key for both: parameters fold their paths into it, steps their numbers."""
        import jax

        key = jax.random.key(self.config.seed)
        return key, key

    def source(self) -> Path:
        """The dataset's folder; the demo dataset is made on first use."""
        if self.config.data.root is not None or self.config.data.repo_id is not None:
            # Many ask, and in the Hub's cache files are counted for it.
            self._source = self._source or resolve_root(self.config.data)
            return self._source
        from preflight.data.demo import ensure_demo_dataset

        return ensure_demo_dataset(progress=self._on_demo)

    def dataset(self) -> SampleDataset:
        """The transformed samples; opened once."""
        if self._dataset is None:
            self._dataset = SampleDataset(self._data(), self.config.model)
        return self._dataset

    def _data(self) -> DataConfig:
        return dataclasses.replace(self.config.data, root=self.source(), repo_id=None)

    def columns(self) -> tuple[str, ...]:
        """State, actions and cameras, and LeRobot's own columns where samples are made of them."""
        data, features = self.config.data, read_info(self.source()).features
        keys = [data.state, data.actions, *data.cameras.values()]
        if any(key in features and features[key].dtype == "video" for key in data.cameras.values()):
            keys.append("timestamp")
        if data.prompt is None:
            keys.append("task_index")
        return tuple(dict.fromkeys(keys))

    def cameras(self) -> tuple[str, ...]:
        """Those of the config."""
        return tuple(dict.fromkeys(self.config.data.cameras.values()))

    def statistics(self, *, read: bool = True) -> Statistics:
        """The config's file, or what is computed when the dataset is opened."""
        from preflight.data import normalize

        model = self.config.model
        norm = self.config.data.norm or model.default_norm
        # pi0.5 reads the state from 256 bins between -1 and 1; pi0 from scratch learns either.
        wanted = model.default_norm if model.pi05 or self.config.weights is not None else None
        command = command_line(self.facts, "norm-stats", "--write")
        if (path := self.config.data.norm_stats) is None:
            stats = self._computed() if read else None
            return Statistics(norm=norm, model_norm=wanted, path=None, stats=stats, command=command)
        path = path.expanduser()
        stats = normalize.load(path) if read and path.exists() else None
        if stats is not None:
            widths = self._widths()
            stats = {name: normalize.fit_to(stats[name], widths[name], name, path) for name in ("state", "actions")}
        without = command_line(self.facts, "check", "--set", "data.norm_stats=none")
        return Statistics(norm=norm, model_norm=wanted, path=path, stats=stats, command=command, other_command=without)

    def _computed(self) -> dict[str, NormStats]:
        from preflight.data.streamed_stats import exact_stats

        try:
            return self.dataset().stats
        except PreflightError:
            # Something else may be wrong with it, of which this is not the place to speak.
            return exact_stats(self._raw_values())[0]

    def _widths(self) -> dict[str, int]:
        from preflight.data.columns import require_feature

        info, data = read_info(self.source()), self.config.data
        keys = {"state": data.state, "actions": data.actions}
        return {name: math.prod(require_feature(info, key).shape) for name, key in keys.items()}

    def before_normalisation(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """See `preflight.data.raw_values.RawValues.at`."""
        return self._raw_values().at(frames)

    def all_before_normalisation(self) -> RawFiles:
        """From the parquet files, two blocks of them in memory at a time."""
        from preflight.data.episodes import read_episodes
        from preflight.data.raw_values import RawFiles

        info = read_info(self.source())
        return RawFiles(info, read_episodes(info), self.config.data, self.config.model)

    def _raw_values(self) -> RawValues:
        from preflight.data.episodes import read_episodes
        from preflight.data.raw_values import read_raw_values

        if self._raw is None:
            try:
                self._raw = self.dataset().raw_values()
            except PreflightError:
                info = read_info(self.source())
                self._raw = read_raw_values(info, read_episodes(info), self.config.data, self.config.model)
        return self._raw

    def prompts(self) -> dict[int, Prompt]:
        """The tasks' texts, or the config's own prompt for each; a task without text is none."""
        from preflight.data.episodes import read_episodes
        from preflight.data.prompts import require_room
        from preflight.data.raw_values import read_task_indices
        from preflight.data.tokenizer import count_tokens

        info, text = read_info(self.source()), self.config.data.prompt
        episodes = read_episodes(info)
        if text is None:
            texts = {index: task for index, task in enumerate(episodes.tasks) if task}
        else:
            texts = dict.fromkeys(read_task_indices(info, episodes) or (0,), text)
        width = self._widths()["state"] if self.config.model.pi05 else None
        if width is not None and count_tokens("", width) > self.facts.max_token_len:
            require_room(tuple(texts.values()), self.facts.max_token_len, width)  # raises
        return {index: Prompt(text=task, num_tokens=count_tokens(task, width)) for index, task in texts.items()}

    def assets(self) -> dict[str, bytes]:
        """The normalisation statistics, where openpi's policies look for them: `<asset_id>/norm_stats.json`."""
        import json

        from preflight.data.normalize import stats_to_json

        asset_id = self.config.data.repo_id or self.source().name
        return {f"{asset_id}/norm_stats.json": json.dumps(stats_to_json(self.dataset().stats), indent=2).encode()}

    def batch_spec(self, batch_size: int) -> Batch:
        """See `preflight.models.pi0.batch_spec`."""
        from preflight.models.pi0 import batch_spec

        return batch_spec(self.config.model, batch_size)

    def create_model(self, rng: jax.Array) -> Pi0:
        """A pi0 of the configured sizes with fresh parameters."""
        from flax import nnx

        from preflight.models.pi0 import Pi0

        return Pi0(self.config.model, rngs=nnx.Rngs(rng))

    def compute_loss(self, model: nnx.Module, rng: jax.Array, batch: Batch, *, train: bool) -> Float[Array, "b h"]:
        """The flow-matching loss."""
        return model.compute_loss(rng, batch, train=train)

    def _schedule(self) -> optax.Schedule:
        import optax

        schedule = self.config.lr_schedule
        # The warm-up starts above zero, at peak / (warmup + 1), so that the first step already moves; openpi's rule.
        return optax.warmup_cosine_decay_schedule(
            init_value=schedule.peak_lr / (schedule.warmup_steps + 1),
            peak_value=schedule.peak_lr,
            warmup_steps=schedule.warmup_steps,
            decay_steps=schedule.decay_steps,
            end_value=schedule.decay_lr,
        )

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW behind a clip by global norm."""
        import optax

        adamw = self.config.optimizer
        return optax.chain(
            optax.clip_by_global_norm(adamw.clip_gradient_norm),
            optax.adamw(self._schedule(), b1=adamw.b1, b2=adamw.b2, eps=adamw.eps, weight_decay=adamw.weight_decay),
        )

    def learning_rate(self, step: jax.Array) -> jax.Array:
        """The schedule's value at a step."""
        import jax.numpy as jnp

        return jnp.asarray(self._schedule()(step), jnp.float32)

    def trainable(self) -> Any:
        """Every parameter whose path matches none of the config's `freeze` expressions."""
        from flax import nnx

        patterns = [re.compile(pattern) for pattern in self.facts.freeze]

        def is_trained(path: tuple[Any, ...], _: Any) -> bool:
            joined = "/".join(str(part) for part in path)
            return not any(pattern.fullmatch(joined) for pattern in patterns)

        return nnx.All(nnx.Param, is_trained)

    def weights(self) -> Weights | None:
        """The config's `weights`."""
        path = self.config.weights
        return None if path is None else Weights(name=str(path), path=path)

    def load_weights(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters below the config's `weights`; none without it."""
        if self.config.weights is None:
            return {}
        from preflight.models.weights import load_weights

        return load_weights(self.config.weights, params).params

    def weights_fit(self, params: dict[str, Any]) -> Fit | None:
        """The fit of the parameters below the config's `weights`; None without it."""
        if self.config.weights is None:
            return None
        from preflight.models.weights import compare_weights

        return compare_weights(self.config.weights, params)

    def script_step(self) -> None:
        """None: the native stack has no script but our own loop."""

    def unreached(self) -> dict[str, str]:
        """See `preflight.models.unreached`."""
        from preflight.models.unreached import UNREACHED

        return dict(UNREACHED)

    def branches(self) -> dict[str, Run]:
        """The run with its moving average switched, and with LoRA switched."""
        config, model = self.config, self.config.model
        ema = 0.99 if config.ema_decay is None else None  # openpi's default decay
        switched = without_lora(model) if self.facts.lora else with_lora(model)
        lora = "LoRA off" if self.facts.lora else "LoRA on"
        return {
            f"ema_decay={'none' if ema is None else ema}": self._changed(ema_decay=ema),
            # With LoRA, openpi's configs keep no average.
            lora: self._changed(model=switched, freeze=None, ema_decay=None),
        }

    def at_small_size(self) -> Run:
        """The demo's sizes; LoRA stays LoRA and pi0.5 stays pi0.5."""
        model = self.config.model
        small = dataclasses.replace(
            model,
            siglip_variant="mu/32",
            paligemma_variant="dummy_lora" if is_lora(model.paligemma_variant) else "dummy",
            action_expert_variant="dummy_lora" if is_lora(model.action_expert_variant) else "dummy",
            vocab_size=512,
            dtype="float32",
        )
        return self._changed(model=small, batch_size=2, weights=None)

    def _changed(self, **changes: Any) -> NativeRun:
        config = dataclasses.replace(self.config, **changes)
        return NativeRun(config, reference=self.facts.reference, assignments=self.facts.assignments)


def _facts(config: TrainConfig, reference: str, assignments: tuple[str, ...]) -> Facts:
    return Facts(
        name=config.name,
        reference=reference,
        assignments=assignments,
        stack="native",
        project_name=config.project_name,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        num_train_steps=config.num_train_steps,
        log_interval=config.log_interval,
        save_interval=config.save_interval,
        keep_period=config.keep_period,
        milestones=config.milestones,
        warmup_steps=config.lr_schedule.warmup_steps,
        decay_steps=config.lr_schedule.decay_steps,
        peak_lr=config.lr_schedule.peak_lr,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        fsdp_devices=config.fsdp_devices,
        max_worker_restarts=config.max_worker_restarts,
        on_bad_sample=config.data.on_bad_sample,
        max_skipped=config.data.max_skipped,
        ema_decay=config.ema_decay,
        seed=config.seed,
        action_dim=config.model.action_dim,
        action_horizon=config.model.action_horizon,
        max_token_len=config.model.prompt_len,
        wandb_enabled=config.wandb_enabled,
        checkpoint_base_dir=config.checkpoint_base_dir,
        freeze=freeze_patterns(config),
        frozen=bool(freeze_patterns(config)),
        lora=is_lora(config.model.paligemma_variant) or is_lora(config.model.action_expert_variant),
        # What none stands for is said, so that an expectation can be held against it.
        settings=_flatten(dataclasses.asdict(config))
        | {
            "freeze": freeze_patterns(config),
            "model.max_token_len": config.model.prompt_len,
            "data.norm": config.data.norm or config.model.default_norm,
        },
    )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value) if isinstance(value, Path) else value
    return flat
