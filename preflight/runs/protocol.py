"""The one protocol through which checks, benchmarks and training see a training run, whoever wrote its config."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import jax
    import numpy as np
    import optax
    from flax import nnx
    from jaxtyping import Array, Float

    from preflight.data.normalize import NormStats
    from preflight.data.streamed_stats import ValueSource
    from preflight.models.fit import Fit

Batch = dict[str, Any]


class MapDataset(Protocol):
    """A map-style dataset: transformed samples as numpy arrays, no batch axis."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class StagedDataset(MapDataset, Protocol):
    """A map-style dataset that tells its stages apart, so that a benchmark can time each; no dataset needs to."""

    def sample_stages(self) -> Sequence[tuple[str, Callable[[Any], Any]]]:
        """The stages of making a sample by name, in order: "decode", "transform".

        The first takes the index, each other one what the one before it gave; the last gives the sample.
        """
        ...


class BatchStagedDataset(MapDataset, Protocol):
    """A `StagedDataset` that makes a batch's samples together, as loaders then ask it to."""

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Any]: ...

    def batch_stages(self) -> Sequence[tuple[str, Callable[[Any], Any]]]:
        """The stages of `__getitems__` by name, in order.

        The first takes the indices, each other one what the one before it gave; the last gives the samples.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Plain values of a run, known without building anything."""

    name: str
    reference: str  # what to write on the command line to mean this run: a config's name or a file
    assignments: tuple[str, ...]  # the overrides beside it
    stack: str
    project_name: str
    batch_size: int  # over all devices
    num_workers: int
    num_train_steps: int
    log_interval: int
    save_interval: int
    keep_period: int | None
    milestones: tuple[int, ...]  # steps asked for camera views, beside 0, the saves and the last step
    warmup_steps: int | None  # None: a schedule of another kind
    decay_steps: int | None
    peak_lr: float | None
    ema_decay: float | None
    seed: int
    action_dim: int
    action_horizon: int
    max_token_len: int  # tokens of the prompt
    wandb_enabled: bool
    checkpoint_base_dir: Path
    freeze: tuple[str, ...]  # regular expressions of the parameters that are not trained, where the config has such
    frozen: bool  # whether the config keeps parameters from being trained, by expressions or a filter of its own
    lora: bool  # whether the model has adapters
    settings: dict[str, Any]  # every field of the config by its dotted key, for expectations and the record
    in_file_only: tuple[str, ...] = ()  # settings that no `--set` changes: they stand in the config's own file
    options: tuple[str, ...] = ()  # further words that a command needs to find this run, as ("--openpi", "DIR")
    frozen_dtype: str | None = None  # what frozen parameters are held in; None: in the model's own
    loss_by_action: bool = True  # whether the loss has a value for each action step, [b, h]; else one a sample, [b]
    formats: tuple[str, ...] = ("v2.0", "v2.1", "v3.0")  # of LeRobot's datasets, which the run's reader opens
    decodes_all_cameras: bool = False  # whether the reader decodes cameras that the model never sees, too
    gradient_accumulation_steps: int = 1  # steps whose gradients make one update of the parameters
    fsdp_devices: int = 1  # devices that share one copy of the state
    max_worker_restarts: int = 3  # loader workers that may die and be replaced
    on_bad_sample: Literal["raise", "skip"] = "raise"  # what a sample that cannot be read does
    max_skipped: int = 100  # different samples that may be skipped
    worker_modules: tuple[str, ...] = ()  # what samples are made with, imported once for all loader workers

    @property
    def effective_batch_size(self) -> int:
        """Samples that an update of the parameters is made from."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def num_updates(self) -> int:
        """How often the parameters move in the whole run; the schedule counts these."""
        return self.num_train_steps // self.gradient_accumulation_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """The normalisation statistics of a run, and where they come from."""

    norm: Literal["zscore", "quantile"]
    model_norm: Literal["zscore", "quantile"] | None  # what the model, or its pretrained weights, want; None: either
    path: Path | None  # the file they are read from; None: computed from the dataset when it is opened
    stats: dict[str, NormStats] | None  # by "state" and "actions"; None: the file is not there, or was not read
    elsewhere: tuple[Path, ...] = ()  # files that were written where this run does not look
    remote: str | None = None  # the address that the file would be fetched from
    fetched: bool = False  # whether that address is where the file belongs, be it fetched already or not
    command: str | None = None  # computes them
    other_command: str | None = None  # the stack's own way to do without, or to compute them
    other_decodes: bool = False  # whether that decodes every picture of the dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model is told with the frames of one task."""

    text: str | None  # None: nothing, and a sample cannot be made
    num_tokens: int  # before any is cut off


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Where the parameters lie that training starts from."""

    name: str  # as the config says it: a path or an address
    path: Path | None  # where they are on this machine; None: they would be fetched
    host: str | None = None  # from which machine
    place: Path | None = None  # where they would be kept
    fetch: str | None = None  # the command that fetches them


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptStep:
    """What a user's own train step does, traced."""

    path: Path  # of the script
    before: Any  # the train state, by shapes
    after: Any
    metrics: Any  # what the script logs of a step


@runtime_checkable
class Run(Protocol):
    """A training run. Everything but `facts` may be expensive and is made when it is asked for."""

    facts: Facts

    def keys(self) -> tuple[jax.Array, jax.Array]:
        """The random keys that the parameters and the steps are drawn from."""
        ...

    def source(self) -> Path | None:
        """The folder of the raw LeRobot dataset; None where samples are made up, without one.

        Raises:
            DataError: There is none where the config says.
            NotCovered: The samples come from something that is no LeRobot dataset.
        """
        ...

    def columns(self) -> tuple[str, ...]:
        """The dataset's keys that the run asks for, cameras among them."""
        ...

    def cameras(self) -> tuple[str, ...]:
        """The dataset's cameras whose pictures reach the model.

        Raises:
            DataError: The dataset lacks what the transforms ask for.
        """
        ...

    def statistics(self, *, read: bool = True) -> Statistics:
        """The normalisation statistics.

        Args:
            read: Whether the file is read, or they are computed; else no more is said than where they belong.

        Raises:
            DataError: The file is there and cannot be read.
        """
        ...

    def before_normalisation(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """What is normalised, for some frames, as the run's transforms make it; no picture is decoded.

        Args:
            frames: int64[n], indices of frames.

        Returns:
            "state" float[n, d] and "actions" float[n, h, d].

        Raises:
            DataError: The dataset lacks what the transforms ask for, or a transform fails.
        """
        ...

    def all_before_normalisation(self) -> ValueSource:
        """The same of all frames, to be gone through in blocks; they are never held together.

        Raises:
            DataError: The dataset is damaged or lacks what the transforms ask for, here or while it is gone through.
        """
        ...

    def prompts(self) -> dict[int, Prompt]:
        """The prompt of every task of the dataset, by its index; with a state of full length where it takes one in.

        Raises:
            DataError: The dataset lacks what the transforms ask for, or the tokenizer is not on this machine.
        """
        ...

    def dataset(self) -> MapDataset:
        """Transformed samples.

        Raises:
            DataError: The dataset is missing, damaged or lacks what the config asks for.
        """
        ...

    def assets(self) -> dict[str, bytes]:
        """Files that belong beside the parameters in a checkpoint, by their path below `assets/`."""
        ...

    def batch_spec(self, batch_size: int) -> Batch:
        """The shapes and dtypes of a batch, as `jax.ShapeDtypeStruct`."""
        ...

    def create_model(self, rng: jax.Array) -> nnx.Module:
        """A model with fresh parameters."""
        ...

    def compute_loss(self, model: nnx.Module, rng: jax.Array, batch: Batch, *, train: bool) -> Float[Array, "b h"]:
        """One loss value for each sample and action step."""
        ...

    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer with its learning-rate schedule."""
        ...

    def learning_rate(self, step: jax.Array) -> jax.Array:
        """The learning rate of a step, for the record."""
        ...

    def trainable(self) -> Any:
        """The NNX filter of the parameters that are trained."""
        ...

    def weights(self) -> Weights | None:
        """Where the pretrained parameters lie; None where training starts from fresh ones."""
        ...

    def load_weights(self, params: dict[str, Any]) -> dict[str, Any]:
        """The pretrained parameters that training starts from.

        Args:
            params: Shapes and dtypes of all parameters, as a nested dict.

        Returns:
            Nested as `params`, the leaves that were loaded and no others: what is missing is initialised afresh.

        Raises:
            DataError: They are missing, or do not fit the model; names the leaf.
        """
        ...

    def weights_fit(self, params: dict[str, Any]) -> Fit | None:
        """How the pretrained parameters fit, by their shapes alone; None where training starts from fresh ones.

        Args:
            params: Shapes and dtypes of all parameters, as a nested dict.

        Raises:
            DataError: They are missing or damaged.
            NotCovered: They are in a form whose shapes cannot be looked at alone.
        """
        ...

    def script_step(self) -> ScriptStep | None:
        """The train step of the user's own training script, traced at full size; None where there is no script.

        Raises:
            Exception: Whatever the script raises when it is imported or traced.
        """
        ...

    def unreached(self) -> dict[str, str]:
        """Parameters that no loss of this architecture depends on, by path, each with the reason.

        Their gradients are zero by design, and no sign of a mistake.
        """
        ...

    def branches(self) -> dict[str, Run]:
        """This run with every other branch of its train step: moving average on and off, LoRA on and off.

        By a name that says what differs, as in `ema_decay=0.99`.
        """
        ...

    def at_small_size(self) -> Run:
        """This run with a model of the same architecture that a CPU steps in a second, and a batch of two.

        The parameters' paths, the filter of the trained ones and the optimizer are the same; only sizes differ.
        """
        ...


def command_line(facts: Facts, command: str, *words: str) -> str:
    """The command that means this run with the overrides it has, quoted for a shell, for a hint.

    Args:
        facts: The run's.
        command: "check", "train", "bench-loader" or "norm-stats".
        words: Further words; a `--set` among them takes the place of the run's own of the same key.
    """
    replaced = {words[i + 1].partition("=")[0] for i, word in enumerate(words) if word == "--set"}
    kept = [assignment for assignment in facts.assignments if assignment.partition("=")[0] not in replaced]
    overrides = [word for assignment in kept for word in ("--set", assignment)]
    return shlex.join(["preflight", command, facts.reference, *facts.options, *overrides, *words])
