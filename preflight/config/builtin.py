"""The configs that ship with preflight: the checklist's two runs, and the demo that trains on a CPU."""

from __future__ import annotations

import dataclasses

from preflight.config.schema import CosineScheduleConfig, DataConfig, ModelConfig, TrainConfig

DEFAULT_CONFIG = "pi0_lighter_cup_demo"

# The demo scene's cameras and columns; six joints an arm are predicted relative to the state, the gripper absolute.
_LIGHTER_CUP = DataConfig(
    cameras={
        "base_0_rgb": "observation.images.cam_high",
        "left_wrist_0_rgb": "observation.images.cam_left_wrist",
        "right_wrist_0_rgb": "observation.images.cam_right_wrist",
    },
    delta_actions=(6, -1, 6, -1),
)

_TROSSEN = TrainConfig(
    name="pi0_lighter_cup_trossen",
    data=_LIGHTER_CUP,
    batch_size=32,
    num_workers=8,
    num_train_steps=20_000,
    save_interval=5_000,
)

_DEMO = TrainConfig(
    name=DEFAULT_CONFIG,
    model=ModelConfig(
        siglip_variant="mu/32",  # 49 tokens an image instead of 256: attention is what a CPU spends its time on
        paligemma_variant="dummy",
        action_expert_variant="dummy",
        vocab_size=512,
        dtype="float32",
    ),
    data=_LIGHTER_CUP,
    lr_schedule=CosineScheduleConfig(warmup_steps=10, peak_lr=1e-3, decay_steps=120, decay_lr=1e-4),
    batch_size=4,
    num_workers=2,
    num_train_steps=120,
    log_interval=20,
    save_interval=60,
    keep_period=60,
)

BUILTIN_CONFIGS: dict[str, TrainConfig] = {
    config.name: config
    for config in (
        _TROSSEN,
        dataclasses.replace(_TROSSEN, name="pi0_lighter_cup_test", batch_size=16, num_train_steps=1_000),
        _DEMO,
    )
}
