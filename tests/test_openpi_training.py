"""Our loop on openpi's model and data: openpi's losses, and checkpoints that openpi itself restores and serves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import openpi_fork
import pytest
from command import PREFLIGHT

# A test may wait for two runs, each of which compiles its step for minutes.
pytestmark = [*openpi_fork.MARKS, pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS = 3
STATISTICS = """
sys.path.insert(1, {tests!r})
import openpi_fork
from preflight.runs import load_run
print(json.dumps(str(openpi_fork.write_stats(load_run("g1_small", stack="openpi")))))
"""
# jax 0.5.3 takes minutes to compile a whole step for a CPU at its usual level, and seconds at this; its steps are slow.
FAST_COMPILE = "--xla_backend_optimization_level=0"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A fork, a home, statistics where openpi looks for them; and the folder to work in."""
    folder = tmp_path_factory.mktemp("lab")
    home = openpi_fork.make_home(folder / "home")
    fork = openpi_fork.make_fork(folder / "fork")
    environment = openpi_fork.environment(home) | {
        "XLA_FLAGS": FAST_COMPILE,
        "WANDB_MODE": "disabled",
        "COLUMNS": "120",
    }
    # What makes our own tests strict is not openpi's; and jax 0.5.3 crashed on reading back what it compiled for a CPU.
    for name in ("JAX_NUMPY_RANK_PROMOTION", "JAX_CPU_ENABLE_ASYNC_DISPATCH", "JAX_COMPILATION_CACHE_DIR"):
        environment.pop(name, None)
    made = folder, fork, environment
    assert on_fork(STATISTICS.format(tests=str(Path(__file__).parent)), made)
    return made


def run(words, lab, timeout=540):
    folder, _, environment = lab
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


def flown(lab, name, *assignments):
    """A short run with our loop; returns its folder."""
    settings = (f"num_train_steps={STEPS}", "log_interval=1", *assignments)
    words = ["--exp-name", name, *(word for setting in settings for word in ("--set", setting))]
    done = run([PREFLIGHT, "train", "g1_small", "--openpi", str(lab[1]), *words], lab)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return lab[0] / "checkpoints" / "g1_small" / name


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(lab):
    return flown(lab, "ours")


PYTHON_ON_FORK = """
import json, sys
from pathlib import Path
sys.path.insert(0, {fork!r} + "/src")
"""


def on_fork(code, lab):
    """Runs Python with the fork's openpi; returns the JSON that it prints last."""
    _, fork, _ = lab
    done = run([sys.executable, "-c", PYTHON_ON_FORK.format(fork=str(fork)) + code], lab)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_steps_are_logged_and_saved(trained):
    lines = logged(trained)
    assert lines[-1]["step"] == STEPS - 1
    assert all(line["loss"] < 100 for line in lines)
    assert {"ema_distance", "update_ratio", "loss_max"} <= lines[-1].keys()
    assert sorted(p.name for p in (trained / str(STEPS - 1)).iterdir() if p.is_dir()) == [
        "assets",
        "params",
        "train_state",
    ]
    assert (trained / str(STEPS - 1) / "assets" / "lab" / "g1" / "norm_stats.json").is_file()


SHARDED = """
import jax
from preflight.runs import load_run
from preflight.training.mesh import make_mesh
from preflight.training.state import state_sharding

places = jax.tree.leaves(state_sharding(load_run("g1_small", stack="openpi"), make_mesh(2)))
print(json.dumps(sum(not place.is_fully_replicated for place in places)))
"""


def test_two_devices_that_share_the_state_train_with_the_losses_of_one(lab, trained):
    folder, fork, environment = lab
    two = environment | {"XLA_FLAGS": f"{FAST_COMPILE} --xla_force_host_platform_device_count=2"}
    shared = flown((folder, fork, two), "shared", "fsdp_devices=2")
    for name in ("loss", "grad_norm", "param_norm", "ema_distance"):
        losses, wanted = ([line[name] for line in logged(where)] for where in (shared, trained))
        assert losses == pytest.approx(wanted, rel=2e-4), name
    # The embedding, its average and its two moments; the small model's other arrays are below openpi's bound.
    assert on_fork(SHARDED, (folder, fork, two)) >= 4


LOSSES = """
import functools, jax, numpy as np
from preflight.data.loader import BatchLoader
from preflight.runs import load_run
from preflight.runs.openpi.install import import_script
from preflight.training.state import first_state, model_def
from preflight.training.step import train_step
import openpi.models.model as model
import openpi.training.sharding as sharding

run = load_run("g1_small", stack="openpi")
sharded = jax.sharding.SingleDeviceSharding(jax.devices()[0])
init, steps = run.keys()
with BatchLoader(run.dataset(), batch_size=4, num_workers=0, seed=7) as loader:
    batches = [next(loader) for _ in range(2)]

def losses(step, state):
    found = []
    for batch in batches:
        state, metrics = step(state, batch)
        found.append([float(metrics[name]) for name in ("loss", "grad_norm", "param_norm")])
    return found

structure = model_def(run)
ours_step = jax.jit(lambda state, batch: train_step(run, structure, steps, state, batch))
ours = losses(ours_step, first_state(run, init, sharded))

script = import_script(Path({fork!r}) / "scripts" / "train.py")
train_rng, init_rng = jax.random.split(jax.random.key(run.config.seed))
state, _ = script.init_train_state(run.config, init_rng, sharding.make_mesh(1), resume=False)
theirs_step = jax.jit(functools.partial(script.train_step, run.config))
def step(state, batch):
    observation = model.Observation.from_dict({{**batch, "image": dict(batch["image"])}})
    pair = jax.tree.map(jax.numpy.asarray, (observation, batch["actions"]))
    return theirs_step(train_rng, state, pair)
theirs = losses(step, state)
print(json.dumps({{"ours": ours, "theirs": theirs}}))
"""


def test_losses_are_those_of_openpis_own_script(lab):
    found = on_fork(LOSSES.format(fork=str(lab[1])), lab)
    for ours, theirs in zip(found["ours"], found["theirs"], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4)
    # The parameters moved in between.
    assert found["ours"][0][2] != found["ours"][1][2]


RESTORED = """
import jax, numpy as np, orbax.checkpoint as ocp
import openpi.training.checkpoints as checkpoints
import openpi.training.config as configs
import openpi.training.sharding as sharding
from preflight.models.params import parameter_path
from preflight.runs import load_run
from preflight.runs.openpi.install import import_script
from preflight.training import checkpoints as own
from preflight.training.state import init_state

folder = Path({folder!r})
config = configs.get_config("g1_small")
script = import_script(Path({fork!r}) / "scripts" / "train.py")
mesh = sharding.make_mesh(1)
shapes, _ = script.init_train_state(config, jax.random.key(0), mesh, resume=True)
placed = jax.sharding.SingleDeviceSharding(jax.devices()[0])
place = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), tree)
manager, resuming = checkpoints.initialize_checkpoint_dir(folder, keep_period=None, overwrite=False, resume=True)
theirs = checkpoints.restore_state(manager, place(shapes), None)

run = load_run("g1_small", stack="openpi")
abstract = place(jax.eval_shape(lambda key: init_state(run, key), jax.random.key(0)))
ours = own.restore(own.open_manager(folder, keep_period=None), {step}, abstract)

def same(left, right):
    left, right = jax.tree.leaves(left), jax.tree.leaves(right)
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right))

print(json.dumps({{
    "resuming": resuming,
    "step": int(theirs.step),
    "params": same(theirs.params, ours.params),
    "ema": same(theirs.ema_params, ours.ema_params),
    "optimizer": same(theirs.opt_state, ours.opt_state),
    "moved": not same(theirs.params, theirs.ema_params),
}}))
"""


def test_openpi_restores_the_whole_state(lab, trained):
    found = on_fork(RESTORED.format(folder=str(trained), fork=str(lab[1]), step=STEPS - 1), lab)
    assert found == {"resuming": True, "step": STEPS, "params": True, "ema": True, "optimizer": True, "moved": True}


SERVED = """
import numpy as np
import openpi.policies.policy_config as policies
import openpi.training.config as configs

config = configs.get_config("g1_small")
policy = policies.create_trained_policy(config, Path({folder!r}) / "{step}")
frame = {{
    "observation.images.cam_high": np.zeros((3, 48, 64), np.float32),
    "observation.state": np.zeros(26, np.float32),
    "action": np.zeros((10, 26), np.float32),
    "prompt": "pick up the lighter",
}}
repack = configs.get_config("g1_small").data.create(config.assets_dirs, config.model).repack_transforms.inputs[0]
actions = policy.infer(repack(frame))["actions"]
print(json.dumps({{"shape": list(actions.shape), "finite": bool(np.isfinite(actions).all())}}))
"""


def test_openpi_serves_the_checkpoint(lab, trained):
    assert on_fork(SERVED.format(folder=str(trained), step=STEPS - 1), lab) == {"shape": [10, 32], "finite": True}


def test_the_checkouts_own_script_is_launched_with_telemetry(lab):
    folder, fork, _ = lab
    words = [PREFLIGHT, "train", "g1_small_fake", "--openpi", str(fork), "--trainer", "openpi", "--exp-name", "theirs"]
    done = run([*words, "--set", "num_train_steps=2", "--set", "num_workers=0"], lab)
    assert done.returncode == 0, done.stderr[-4000:]
    made = folder / "checkpoints" / "g1_small_fake" / "theirs"
    assert (made / "1" / "params").is_dir()
    samples = [json.loads(line) for line in (made / "telemetry.jsonl").read_text().splitlines()]
    memory = [sample["tree"]["pss_bytes"] for sample in samples if "pss_bytes" in (sample["tree"] or {})]
    assert max(memory) > 500 * 2**20  # the script's own process, not only its start
    assert "--num_train_steps=2" in done.stdout


def test_a_script_that_fails_is_told_in_a_sentence(lab):
    words = [PREFLIGHT, "train", "g1_small", "--openpi", str(lab[1]), "--trainer", "openpi", "--exp-name", "late"]
    done = run([*words, "--set", "data.assets.asset_id=nowhere"], lab)
    assert done.returncode == 3
    assert "scripts/train.py ended with exit code 1" in done.stderr


def test_the_other_stacks_run_has_no_script(tmp_path):
    done = subprocess.run(
        [PREFLIGHT, "train", "pi0_lighter_cup_demo", "--stack", "native", "--trainer", "openpi"],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "--trainer openpi" in done.stderr
    assert not list(Path(tmp_path).iterdir())
