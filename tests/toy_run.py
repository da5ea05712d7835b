"""A run whose model is two matrix products in a loop: its step compiles in a second, and its loss draws no numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from preflight.config.load import load_config
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
