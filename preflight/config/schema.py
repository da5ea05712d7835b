"""What a training run is configured by: plain frozen dataclasses, importable without jax or torch."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Literal

IMAGE_SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
IMAGE_SIZE = 224

GemmaVariant = Literal["dummy", "dummy_lora", "gemma_300m", "gemma_300m_lora", "gemma_2b", "gemma_2b_lora"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of pi0 or pi0.5; the defaults are the full pi0 (3 238 048 528 parameters)."""

    pi05: bool = False  # pi0.5: the state is read from the prompt, the flow time scales the action expert's norms
    siglip_variant: str = "So400m/14"  # image tower, "<size>/<patch>": mu, Ti, S, B, L or So400m
    paligemma_variant: GemmaVariant = "gemma_2b"  # the language model that reads images and prompt
    action_expert_variant: GemmaVariant = "gemma_300m"  # the expert that reads state and noisy actions
    vocab_size: int = 257_152  # rows of the token embedding
    action_dim: int = 32  # state and actions are padded with zeros to this width
    action_horizon: int = 50  # action steps predicted from one observation
    max_token_len: int | None = None  # prompt tokens, padded or cut to it; none: 48, or 200 for pi0.5
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of activations; parameters are float32
    remat: bool = True  # recompute each layer's activations in the backward pass instead of keeping them
    scan: bool = True  # compile one layer and loop over it; false compiles every layer, for longer

    @property
    def prompt_len(self) -> int:
        """`max_token_len`, or openpi's default for the architecture."""
        if self.max_token_len is not None:
            return self.max_token_len
        return 200 if self.pi05 else 48

    @property
    def default_norm(self) -> Literal["zscore", "quantile"]:
        """The normalisation where `DataConfig.norm` names none: pi0.5's prompt has room for -1 to 1 alone."""
        return "quantile" if self.pi05 else "zscore"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the LeRobot dataset lies and how its columns feed the model."""

    root: Path | None = None  # the dataset's folder; neither root nor repo_id: the demo dataset
    repo_id: str | None = None  # "user/name" below $HF_LEROBOT_HOME or in the Hub's cache
    state: str = "observation.state"  # column with the robot's state
    actions: str = "action"  # column with the actions
    cameras: dict[str, str] = field(default_factory=dict)  # model slot -> dataset key; others are masked out
    # Videos to 224x224: by FFmpeg's scaler on the way out of the decoder, or to openpi's very pixels at half the speed.
    resize: Literal["swscale", "pil"] = "swscale"
    # Frames as the model sees them are kept, not decoded again: in a cache that is made before the run, on disk, or in
    # shared memory as they are read for the first time.
    cache: Literal["off", "memory", "disk"] = "off"
    cache_dir: Path | None = None  # where caches on disk lie; none: frames/ in preflight's own cache folder
    # Samples are shuffled among so many episodes at a time; none: among all.
    shuffle_window: int | None = None
    on_bad_sample: Literal["raise", "skip"] = "raise"  # skip: a sample that cannot be read gives way to the next one
    max_skipped: int = 100  # different samples that a run may skip; a resumed run counts anew
    prompt: str | None = None  # one prompt for all frames instead of the dataset's tasks
    # Openpi's mask notation: n > 0 makes the next n dimensions relative to the state, n < 0 leaves |n| absolute.
    delta_actions: tuple[int, ...] = ()
    # (x - mean) / std, or q01..q99 to -1..1; none: zscore, or quantile for pi0.5, as openpi has it.
    norm: Literal["zscore", "quantile"] | None = None
    norm_stats: Path | None = None  # a norm_stats.json; none: computed from the dataset's columns
    tokenizer: Literal["builtin"] = "builtin"  # the byte-level tokenizer that ships with preflight


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW behind a clip by global norm; openpi's defaults."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-10
    clip_gradient_norm: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineScheduleConfig:
    """Linear warm-up, then a cosine to the floor; openpi's defaults."""

    warmup_steps: int = 1_000
    peak_lr: float = 2.5e-5
    decay_steps: int = 30_000
    decay_lr: float = 2.5e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    name: str
    model: ModelConfig = ModelConfig()
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: AdamWConfig = AdamWConfig()
    lr_schedule: CosineScheduleConfig = CosineScheduleConfig()
    batch_size: int = 32  # samples of a step, over all devices
    # Steps whose mean gradient makes one update. Everything is counted in steps but the schedule, which counts updates.
    gradient_accumulation_steps: int = 1
    fsdp_devices: int = 1  # devices that share one copy of parameters, optimizer state and average; must divide them
    num_workers: int = 8  # loader processes; 0 loads in the training process
    max_worker_restarts: int = 3  # loader processes that may die and be replaced; what they had to read is read again
    num_train_steps: int = 20_000  # steps 0 … num_train_steps - 1
    log_interval: int = 100
    save_interval: int = 5_000
    keep_period: int | None = 5_000  # checkpoints at multiples of it are kept for ever, of the others the newest
    milestones: tuple[int, ...] = ()  # steps at which camera views are logged beside 0, the saves and the last
    ema_decay: float | None = None  # decay of the parameters' moving average; none: no average is kept
    # Regular expressions; a parameter whose whole path matches one is not trained. None: what is not an adapter in the
    # experts with a LoRA variant, and nothing without one; [] trains everything.
    freeze: tuple[str, ...] | None = None
    weights: Path | None = None  # parameters to start from: a checkpoint's step folder, or its params folder
    seed: int = 42
    project_name: str = "preflight"  # wandb project
    wandb_enabled: bool = True
    checkpoint_base_dir: Path = Path("checkpoints")
