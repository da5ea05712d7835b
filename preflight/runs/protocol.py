"""The one protocol through which checks, benchmarks and training see a training run, whoever wrote its config."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import jax
    import optax
    from flax import nnx
    from jaxtyping import Array, Float

    from preflight.models.fit import Fit

Batch = dict[str, Any]


class MapDataset(Protocol):
    """A map-style dataset: transformed samples as numpy arrays, no batch axis."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


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
    warmup_steps: int
    decay_steps: int
    peak_lr: float
    ema_decay: float | None
    seed: int
    action_dim: int
    action_horizon: int
    wandb_enabled: bool
    checkpoint_base_dir: Path
    freeze: tuple[str, ...]  # regular expressions of the parameters that are not trained
    lora: bool  # whether the model has adapters
    settings: dict[str, Any]  # every field of the config by its dotted key, for expectations and the record


@runtime_checkable
class Run(Protocol):
    """A training run. Everything but `facts` may be expensive and is made when it is asked for."""

    facts: Facts

    def source(self) -> Path:
        """The folder of the raw LeRobot dataset.

        Raises:
            DataError: There is none where the config says.
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
        command: "check", "train" or "bench-loader".
        words: Further words; a `--set` among them takes the place of the run's own of the same key.
    """
    replaced = {words[i + 1].partition("=")[0] for i, word in enumerate(words) if word == "--set"}
    kept = [assignment for assignment in facts.assignments if assignment.partition("=")[0] not in replaced]
    overrides = [word for assignment in kept for word in ("--set", assignment)]
    return shlex.join(["preflight", command, facts.reference, *overrides, *words])
