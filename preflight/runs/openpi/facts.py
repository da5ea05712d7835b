"""What an openpi config says, as plain values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from preflight.runs.protocol import Facts

# What openpi's reader of LeRobot data (0.1.0, `lerobot.common.datasets`) opens.
FORMATS = ("v2.0", "v2.1")


def facts_of(config: Any, assignments: tuple[str, ...], options: tuple[str, ...]) -> Facts:
    """The facts of an `openpi.training.config.TrainConfig`, with the overrides and words that commands need."""
    model, schedule = config.model, config.lr_schedule
    variants = [str(getattr(model, name, "")) for name in ("paligemma_variant", "action_expert_variant")]
    lora = any("lora" in variant for variant in variants)
    return Facts(
        name=config.name,
        reference=config.name,
        assignments=assignments,
        options=options,
        in_file_only=("freeze_filter",),
        stack="openpi",
        project_name=config.project_name,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        num_train_steps=config.num_train_steps,
        log_interval=config.log_interval,
        save_interval=config.save_interval,
        keep_period=config.keep_period,
        milestones=(),
        warmup_steps=getattr(schedule, "warmup_steps", None),
        decay_steps=getattr(schedule, "decay_steps", None),
        peak_lr=getattr(schedule, "peak_lr", None),
        fsdp_devices=config.fsdp_devices,
        ema_decay=config.ema_decay,
        seed=config.seed,
        action_dim=model.action_dim,
        action_horizon=model.action_horizon,
        max_token_len=model.max_token_len,
        wandb_enabled=config.wandb_enabled,
        checkpoint_base_dir=Path(config.checkpoint_base_dir),
        freeze=(),
        frozen=_freezes(config.freeze_filter),
        frozen_dtype="bfloat16",
        lora=lora,
        loss_by_action=model.model_type.value != "pi0_fast",
        formats=FORMATS,
        decodes_all_cameras=True,
        worker_modules=("jax", "openpi.training.data_loader", "preflight.runs.openpi"),
        settings=_settings(config),
    )


def _freezes(freeze_filter: Any) -> bool:
    from flax import nnx

    # openpi writes the filter that matches nothing both as an instance and as its class.
    return not (freeze_filter is nnx.Nothing or isinstance(freeze_filter, nnx.Nothing))


def _settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every field by its dotted key; what is no plain value, by its text."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name, None)
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and dataclasses.fields(value):
            found |= _settings(value, f"{prefix}{field.name}.")
        elif value is None or isinstance(value, bool | int | float | str):
            found[prefix + field.name] = value
        elif isinstance(value, tuple | list) and all(isinstance(item, bool | int | float | str) for item in value):
            found[prefix + field.name] = tuple(value)
        else:
            found[prefix + field.name] = _text(value)
    return found


def _text(value: Any) -> str:
    """A path, a filter, a transform: by its text where that is the same in every process, else by its type."""
    text = str(value) if isinstance(value, Path) else repr(value)
    return type(value).__name__ if " at 0x" in text or len(text) > 500 else text
