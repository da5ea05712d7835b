"""A run whose model is two matrix products in a loop: its step compiles in a second, and its loss draws no numbers."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from preflight.config.load import load_config
from preflight.data.sampler import batch_indices
from preflight.errors import DataError
from preflight.models.layers import scan_layers
from preflight.runs.native import NativeRun

WIDTH = 1024  # two layers of it are 8 MiB: above the bound from which parameters are sharded


class Toy(nnx.Module):
    def __init__(self, rng, width):
        first, loop, last = jax.random.split(rng, 3)
        self.first = nnx.Param(jax.random.normal(first, (32, width)) / 32**0.5)
        self.loop = nnx.Param(jax.random.normal(loop, (2, width, width)) / width**0.5)
        self.last = nnx.Param(jax.random.normal(last, (width, 32)) / width**0.5)
        self.bias = nnx.Param(jnp.zeros(32))


def predict(params, state):
    def layer(x, p):
        return x + jnp.tanh(x @ p["w"])

    x = scan_layers(layer, state @ params["first"], {"w": params["loop"]}, remat=True, scan=True)
    return x @ params["last"] + params["bias"][None]


class ToyRun(NativeRun):
    """The demo's config and batches, with another model."""

    width = WIDTH

    def create_model(self, rng):
        return Toy(rng, self.width)

    def compute_loss(self, model, rng, batch, *, train):
        params = {name: getattr(model, name)[...] for name in ("first", "loop", "last", "bias")}
        return jnp.mean(jnp.square(predict(params, batch["state"])[:, None] - batch["actions"]), axis=-1)


def toy_run(*assignments, width=WIDTH):
    run = ToyRun(load_config("pi0_lighter_cup_demo", ["model.action_horizon=2", *assignments]))
    run.width = width
    return run


def batch_of(run, seed=0, size=None):
    """Random state and actions; what the toy does not look at is left out."""
    rng = np.random.default_rng(seed)
    spec = run.batch_spec(size or run.facts.batch_size)
    return {name: rng.standard_normal(spec[name].shape).astype(np.float32) for name in ("state", "actions")}


class ToySamples:
    """Samples for the toy that cost nothing: one camera, and targets that can be learned.

    Args:
        broken: Samples whose actions are no numbers.
        missing: Samples that cannot be read.
        stuck: Samples whose reading never ends.
    """

    def __init__(self, horizon, *, broken=(), missing=(), stuck=()):
        self.horizon, self.broken, self.missing, self.stuck = horizon, broken, missing, stuck

    def __len__(self):
        return 512

    def __getitem__(self, index):
        if index in self.missing:
            raise DataError(f"sample {index} cannot be read")
        if index in self.stuck:
            time.sleep(3600)
        state = np.random.default_rng(index).standard_normal(32).astype(np.float32) / 4
        fill = np.nan if index in self.broken else 0.0
        return {
            "state": state,
            "actions": np.tile(state, (self.horizon, 1)) + np.float32(fill),
            "image": {"base_0_rgb": np.full((224, 224, 3), index % 256, np.uint8)},
            "image_mask": {"base_0_rgb": np.array(True)},
        }


def flying_toy(base, *assignments, broken_step=None, missing_step=None, stuck_step=None, width=64):
    """A toy that can be trained: eight steps in a second or two.

    Args:
        base: Where its runs lie.
        assignments: Settings.
        broken_step: The step that trains on a sample which is no number.
        missing_step: The step whose batch cannot be read.
        stuck_step: The step whose batch never comes.
    """
    run = toy_run(
        *("num_train_steps=8", "log_interval=2", "save_interval=4", "keep_period=none", "batch_size=4"),
        *("num_workers=0", "wandb_enabled=false", "lr_schedule.warmup_steps=2", f"checkpoint_base_dir={base}"),
        *assignments,
        width=width,
    )
    facts = run.facts

    def sample_of(step):
        return () if step is None else (int(batch_indices(512, facts.batch_size, facts.seed, step)[0]),)

    bad = {"broken": broken_step, "missing": missing_step, "stuck": stuck_step}
    samples = ToySamples(facts.action_horizon, **{name: sample_of(step) for name, step in bad.items()})
    run.dataset = lambda: samples
    run.assets = lambda: {"toy/norm_stats.json": b"{}"}
    return run
