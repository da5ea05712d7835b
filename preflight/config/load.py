"""A config by its name or its TOML file."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from preflight.config.builtin import BUILTIN_CONFIGS, DEFAULT_CONFIG
from preflight.config.convert import merge, parse_assignments
from preflight.config.schema import TrainConfig
from preflight.errors import UsageError
from preflight.suggest import unknown


def load_config(name: str, assignments: Iterable[str] = ()) -> TrainConfig:
    """Finds a config and applies the overrides.

    Args:
        name: A built-in config's name, or the path of a TOML run file.
        assignments: `KEY=VALUE` overrides with dotted keys.

    Raises:
        UsageError: An unknown name or key, a broken or unreadable file, or a value of the wrong type or range.
    """
    if is_file_name(name):
        config = _load_file(Path(name))
    elif name in BUILTIN_CONFIGS:
        config = BUILTIN_CONFIGS[name]
    else:
        message, hint = unknown("config", name, BUILTIN_CONFIGS)
        raise UsageError(message, f"{hint}; or the path of a TOML run file")
    overrides = parse_assignments(assignments)
    config = merge(_for_other_data(config, overrides), overrides, where="--set", base_dir=Path.cwd())
    validate(config)
    return config


def is_file_name(name: str) -> bool:
    """Whether a config is named by the path of its file."""
    return name.endswith(".toml") or "/" in name


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        UsageError: The file is missing, unreadable, not text or broken; names the file and the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", "a run file is a TOML file; see examples/g1.toml") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def _load_file(path: Path) -> TrainConfig:
    values = read_toml(path)
    base_name = values.pop("base", DEFAULT_CONFIG)
    if not isinstance(base_name, str) or base_name not in BUILTIN_CONFIGS:
        message, hint = unknown("base", str(base_name), BUILTIN_CONFIGS)
        raise UsageError(f"{path}: {message}", hint)
    base = dataclasses.replace(BUILTIN_CONFIGS[base_name], name=path.stem)
    base = _for_other_data(base, values)
    # Not resolved through links: messages should show the path as the user knows it.
    return merge(base, values, where=str(path), base_dir=path.parent.absolute())


def _for_other_data(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """Another dataset has other cameras and dimensions than the demo's: those would be wrong without a word."""
    data, demo = changes.get("data", {}), config.data.root is None and config.data.repo_id is None
    if demo and isinstance(data, dict) and {"root", "repo_id"} & data.keys():
        return dataclasses.replace(config, data=dataclasses.replace(config.data, cameras={}, delta_actions=()))
    return config


def validate(config: TrainConfig) -> None:
    """Refuses values that no run can start with; what a run merely should not do is a check's matter.

    Raises:
        UsageError: Names the first such value.
    """
    model, schedule, adamw = config.model, config.lr_schedule, config.optimizer
    for name, value, least in (
        ("batch_size", config.batch_size, 1),
        ("gradient_accumulation_steps", config.gradient_accumulation_steps, 1),
        ("fsdp_devices", config.fsdp_devices, 1),
        ("num_workers", config.num_workers, 0),
        ("num_train_steps", config.num_train_steps, 1),
        ("log_interval", config.log_interval, 1),
        ("save_interval", config.save_interval, 1),
        ("keep_period", 1 if config.keep_period is None else config.keep_period, 1),
        ("seed", config.seed, 0),
        ("model.action_dim", model.action_dim, 1),
        ("model.action_horizon", model.action_horizon, 1),
        ("model.max_token_len", model.prompt_len, 1),
        ("model.vocab_size", model.vocab_size, 512),  # the built-in tokenizer's ids lie below 512
        ("lr_schedule.warmup_steps", schedule.warmup_steps, 0),
        ("lr_schedule.decay_steps", schedule.decay_steps, 1),
    ):
        if value < least:
            raise UsageError(f"{name} must be at least {least}, not {value}")
    if config.seed >= 2**63:
        raise UsageError(f"seed must be below 2**63, not {config.seed}")
    for name, number, low, high in (
        ("lr_schedule.peak_lr", schedule.peak_lr, 0.0, math.inf),
        ("lr_schedule.decay_lr", schedule.decay_lr, -math.ulp(0.0), math.inf),
        ("optimizer.b1", adamw.b1, -math.ulp(0.0), 1.0),
        ("optimizer.b2", adamw.b2, -math.ulp(0.0), 1.0),
        ("optimizer.eps", adamw.eps, 0.0, math.inf),
        ("optimizer.weight_decay", adamw.weight_decay, -math.ulp(0.0), math.inf),
        ("optimizer.clip_gradient_norm", adamw.clip_gradient_norm, 0.0, math.inf),
    ):
        if not low < number < high:  # NaN is neither
            span = f"between {max(0.0, low):g} and {high:g}" if high < math.inf else "a positive, finite number"
            raise UsageError(f"{name} must be {span}, not {number:g}")
    if schedule.decay_steps <= schedule.warmup_steps:
        raise UsageError(
            f"lr_schedule.decay_steps ({schedule.decay_steps}) must be more than "
            f"lr_schedule.warmup_steps ({schedule.warmup_steps}): the decay is counted from step 0"
        )
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        raise UsageError(f"ema_decay must lie between 0 and 1, not {config.ema_decay}", "none switches it off")
    schemes = {"gs:", "s3:", "hf:", "http:", "https:"}
    if config.weights is not None and (scheme := schemes.intersection(config.weights.parts)):
        raise UsageError(
            f"weights must be a folder on this machine, not a {scheme.pop()}// address",
            "fetch it first, for example: gsutil -m cp -r gs://openpi-assets/checkpoints/pi0_base .",
        )
    for pattern in config.freeze or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"freeze: {pattern!r} is not a regular expression: {error}") from None
    if config.data.root is not None and config.data.repo_id is not None:
        raise UsageError("data.root and data.repo_id are both given", "keep the one that names your dataset")
    if not is_folder_name(config.name):
        raise UsageError(f"name {config.name!r} cannot be a folder's name", "the run's folder is named after it")


def is_folder_name(name: str) -> bool:
    """Whether a run or an experiment can be called so: one plain, printable folder name."""
    plain = name not in ("", ".", "..") and "/" not in name and name == name.strip()
    # 255 bytes is what file systems take; Orbax and wandb make longer names of it.
    return plain and name.isprintable() and len(name.encode()) <= 200
