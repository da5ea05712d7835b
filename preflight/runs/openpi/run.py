"""The openpi stack: a config of the user's own openpi checkout or fork, through openpi's public objects."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from preflight.config.convert import merge, parse_assignments
from preflight.config.load import is_folder_name
from preflight.errors import DataError, NotCovered, UsageError
from preflight.runs.openpi.cache import NotCachedError, cache_folder, cached, fetch_command, from_cache
from preflight.runs.openpi.data import OpenpiData
from preflight.runs.openpi.install import ONE_AT_A_TIME, checkout, import_script, openpi
from preflight.runs.openpi.samples import KEYS, users_error
from preflight.runs.protocol import Batch, Run, ScriptStep, Weights
from preflight.suggest import unknown

if TYPE_CHECKING:
    import jax
    import optax
    from flax import nnx
    from jaxtyping import Array, Float

    from preflight.models.fit import Fit


class OpenpiRun(OpenpiData):
    """A run of the openpi stack; see `OpenpiData` for the arguments."""

    def keys(self) -> tuple[jax.Array, jax.Array]:
        """Split as openpi's own script does it, so that both draw the same numbers."""
        import jax

        steps, init = jax.random.split(jax.random.key(self.config.seed))
        return jax.random.split(init)[1], steps

    def batch_spec(self, batch_size: int) -> Batch:
        """From the model's `inputs_spec`."""
        with ONE_AT_A_TIME:
            observation, actions = self.config.model.inputs_spec(batch_size=batch_size)
        fields = {
            "image": dict(observation.images),
            "image_mask": dict(observation.image_masks),
            "state": observation.state,
            **{key: getattr(observation, key, None) for key in KEYS if key.startswith("token")},
            "actions": actions,
        }
        return {key: value for key, value in fields.items() if value is not None}

    def create_model(self, rng: jax.Array) -> nnx.Module:
        """The config's model."""
        with ONE_AT_A_TIME:
            return self.config.model.create(rng)

    def compute_loss(self, model: nnx.Module, rng: jax.Array, batch: Batch, *, train: bool) -> Float[Array, "b h"]:
        """The loss of openpi's model; [b] for pi0-FAST."""
        if train:
            model.train()
        # A copy: openpi's from_dict writes into the dict of images.
        observation = openpi("models.model", "Observation").from_dict({**batch, "image": dict(batch["image"])})
        # Which mesh its models divide their activations over is a switch of the whole process, too.
        with ONE_AT_A_TIME, _mesh_of_openpi():
            return model.compute_loss(rng, observation, batch["actions"], train=train)

    def optimizer(self) -> optax.GradientTransformation:
        """openpi's, from its optimizer and schedule."""
        create = openpi("training.optimizer", "create_optimizer")
        return create(self.config.optimizer, self.config.lr_schedule, weight_decay_mask=None)

    def learning_rate(self, step: jax.Array) -> jax.Array:
        """The schedule's value at a step."""
        import jax.numpy as jnp

        return jnp.asarray(self.config.lr_schedule.create()(step), jnp.float32)

    def trainable(self) -> Any:
        """The config's `trainable_filter`."""
        return self.config.trainable_filter

    # The weights.

    def weights(self) -> Weights | None:
        """What the config's weight loader asks for."""
        from urllib.parse import urlparse

        try:
            with from_cache(stop_at_first=True) as asked:
                self.config.weight_loader.load({})
        except NotCachedError:
            pass
        except Exception:  # noqa: BLE001 - a loader of the user's own, that asks for nothing first
            return Weights(name=type(self.config.weight_loader).__name__, path=None)
        if not asked:
            return None
        parsed = urlparse(asked[0])
        host = {"gs": "storage.googleapis.com"}.get(parsed.scheme, parsed.netloc) if parsed.scheme else None
        return Weights(
            name=asked[0],
            path=cached(asked[0]),
            host=host,
            place=cache_folder() if host else None,
            fetch=fetch_command(asked[0]) if host else None,
        )

    def weights_fit(self, params: dict[str, Any]) -> Fit | None:
        """The shapes in the checkpoint's metadata against the model's."""
        from preflight.models.weights import compare_weights

        found = self.weights()
        if found is None:
            return None
        if found.path is None:
            raise DataError(f"the weights {found.name} are not on this machine", self._fetch(found))
        if found.path.suffix == ".npz":
            raise NotCovered(f"{found.path} is there; preflight compares checkpoints that Orbax wrote")
        # A step's folder will do for ours, and not for openpi.
        if found.path.is_dir() and (found.path / "params" / "_METADATA").is_file():
            raise DataError(
                f"the weights {found.name} are a checkpoint's step folder, and openpi reads its params folder",
                f"name that: --set weight_loader.params_path={found.path / 'params'}",
            )
        return compare_weights(found.path, params)

    def load_weights(self, params: dict[str, Any]) -> dict[str, Any]:
        """Through the config's weight loader; what it fetches, it fetches only from a machine that answers."""
        import jax

        from preflight.telemetry.network import unreachable

        found = self.weights()
        if found is None:
            return {}
        if found.path is None and found.host and (why := unreachable(found.host, 443)):
            raise DataError(
                f"the weights {found.name} are not on this machine, and {found.host} does not answer: {why}",
                self._fetch(found),
            )
        try:
            loaded = self.config.weight_loader.load(params)
            openpi("shared.array_typing", "check_pytree_equality")(
                expected=params, got=loaded, check_shapes=True, check_dtypes=True
            )
        except Exception as error:
            raise users_error("the weights cannot be loaded", error) from error
        return _without(loaded, jax.ShapeDtypeStruct)

    def _fetch(self, found: Weights) -> str:
        if "://" not in found.name:
            return "name another checkpoint: --set weight_loader.params_path=DIR/params"
        return f"where there is a network: {fetch_command(found.name)}"

    # What else is asked of it.

    def unreached(self) -> dict[str, str]:
        """The same as in the native pi0 and pi0.5, whose parameters have the same paths."""
        from preflight.models.unreached import UNREACHED

        return dict(UNREACHED)

    def script_step(self) -> ScriptStep | None:
        """`train_step` of the checkout's `scripts/train.py`, from the state that its `init_train_state` describes."""
        import jax

        folder = checkout()
        if folder is None:
            return None
        path = folder / "scripts" / "train.py"
        script = import_script(path)
        for name in ("init_train_state", "train_step"):
            if not hasattr(script, name):
                raise AttributeError(f"{path} defines no {name}")
        sharding = openpi("training.sharding")
        key = jax.random.key(self.config.seed)
        # Resuming, it gives the state's shapes and loads nothing. On one device: how it is divided changes no shape.
        with ONE_AT_A_TIME:
            before, _ = script.init_train_state(self.config, key, sharding.make_mesh(1), resume=True)
            batch = self.config.model.inputs_spec(batch_size=self.config.batch_size)
            result = jax.eval_shape(functools.partial(script.train_step, self.config), key, before, batch)
        if not (isinstance(result, tuple) and len(result) == 2):
            many = f" of {len(result)}" if isinstance(result, tuple) else ""
            raise TypeError(f"train_step gives a {type(result).__name__}{many} in the place of (state, metrics)")
        after, metrics = result
        return ScriptStep(path=path, before=before, after=after, metrics=metrics)

    def branches(self) -> dict[str, Run]:
        """The run with its moving average switched, and with LoRA switched where the model's variants allow it."""
        decay = 0.99 if self.config.ema_decay is None else None  # openpi's default
        found: dict[str, Run] = {f"ema_decay={'none' if decay is None else decay}": self._changed(ema_decay=decay)}
        model = self.config.model
        if (switched := _switched_lora(model)) is not None and hasattr(switched, "get_freeze_filter"):
            found["LoRA off" if self.facts.lora else "LoRA on"] = self._changed(
                model=switched, freeze_filter=_instance(switched.get_freeze_filter()), ema_decay=None
            )
        return found

    def at_small_size(self) -> Run:
        """With openpi's `dummy` experts; its image tower has one size only."""
        model = self.config.model
        if self.facts.lora and not _has_variant("dummy_lora"):
            raise NotCovered("openpi has no small model with adapters, and a large one takes a CPU minutes a step")
        small = {
            name: "dummy_lora" if "lora" in getattr(model, name) else "dummy"
            for name in ("paligemma_variant", "action_expert_variant")
            if hasattr(model, name)
        }
        return self._changed(model=dataclasses.replace(model, dtype="float32", **small), batch_size=2)

    def _changed(self, **changes: Any) -> OpenpiRun:
        config = dataclasses.replace(self.config, **changes)
        return OpenpiRun(config, assignments=self.facts.assignments, options=self.facts.options)


def config_names() -> list[str]:
    """The configs that openpi knows.

    Raises:
        UsageError: openpi is missing, half installed or another version.
    """
    # openpi offers a config by name and no list of the names; its own command line reads this one.
    return list(openpi("training.config", "_CONFIGS_DICT"))


def load_openpi(name: str, assignments: tuple[str, ...], options: tuple[str, ...]) -> OpenpiRun:
    """Makes a run from a config that openpi knows.

    Args:
        name: Of the config.
        assignments: `KEY=VALUE` overrides.
        options: Further words that a command needs to find it.

    Raises:
        UsageError: An unknown config or key, or a value that no run can start with.
    """
    if name not in (names := config_names()):
        raise UsageError(*unknown("openpi config", name, names))
    config = openpi("training.config", "get_config")(name)
    config = merge(config, parse_assignments(assignments), where="--set", base_dir=Path.cwd())
    _validate(config)
    return OpenpiRun(config, assignments=assignments, options=options)


def _validate(config: Any) -> None:
    for name, least in (
        ("batch_size", 1),
        ("num_workers", 0),
        ("num_train_steps", 1),
        ("log_interval", 1),
        ("save_interval", 1),
        ("fsdp_devices", 1),
        ("seed", 0),
    ):
        if getattr(config, name) < least:
            raise UsageError(f"{name} must be at least {least}, not {getattr(config, name)}")
    if config.keep_period is not None and config.keep_period < 1:
        raise UsageError(f"keep_period must be at least 1, not {config.keep_period}", "none keeps the newest alone")
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        raise UsageError(f"ema_decay must lie between 0 and 1, not {config.ema_decay}", "none switches it off")
    if not is_folder_name(config.name):
        raise UsageError(f"the config's name {config.name!r} cannot be a folder's name")


def _mesh_of_openpi() -> contextlib.AbstractContextManager[Any]:
    """Has openpi's models divide their activations, where the step is traced for a mesh that shards parameters."""
    from preflight.models.sharding import activation_mesh

    mesh = activation_mesh()
    return contextlib.nullcontext() if mesh is None else openpi("training.sharding", "set_mesh")(mesh)


def _instance(freeze_filter: Any) -> Any:
    # openpi gives the class where it means an instance, which then cannot be asked.
    return freeze_filter() if isinstance(freeze_filter, type) else freeze_filter


def _switched_lora(model: Any) -> Any:
    names = [name for name in ("paligemma_variant", "action_expert_variant") if hasattr(model, name)]
    variants = {name: getattr(model, name) for name in names}
    if any("lora" in variant for variant in variants.values()):
        changed = {name: variant.replace("_lora", "") for name, variant in variants.items()}
    else:
        changed = {name: f"{variant}_lora" for name, variant in variants.items()}
    return dataclasses.replace(model, **changed) if all(map(_has_variant, changed.values())) else None


def _has_variant(variant: str) -> bool:
    return variant in get_args(getattr(openpi("models.gemma"), "Variant", None))


def _without(tree: dict[str, Any], kind: type) -> dict[str, Any]:
    """The tree without the leaves of a kind, and without what is empty then."""
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            if inner := _without(value, kind):
                kept[key] = inner
        elif not isinstance(value, kind):
            kept[key] = value
    return kept
