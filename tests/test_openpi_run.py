"""A run of openpi's: its facts, overrides, keys, loss, parameters, samples and prompts, against openpi itself."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import openpi_fork
import pytest
from flax import nnx
from openpi_fork import changed, load, write_stats

from preflight.errors import NotCovered, UsageError
from preflight.runs import command_line, load_run
from preflight.runs.openpi.install import import_script, openpi
from preflight.training.state import init_state, trainable

pytestmark = openpi_fork.MARKS


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    with openpi_fork.opened(tmp_path_factory) as opened:
        yield opened


@pytest.fixture(scope="module")
def healthy(user, tmp_path_factory):
    """A folder with the healthy run's statistics."""
    folder = tmp_path_factory.mktemp("healthy")
    write_stats(load(folder))
    return folder


# The facts and the overrides.


def test_facts_of_built_in_configs(user):
    facts = load_run("pi0_libero", stack="openpi").facts
    assert (facts.name, facts.stack, facts.reference, facts.options) == ("pi0_libero", "openpi", "pi0_libero", ())
    assert (facts.batch_size, facts.num_workers, facts.num_train_steps) == (32, 2, 30_000)
    assert (facts.log_interval, facts.save_interval, facts.keep_period) == (100, 1000, 5000)
    assert (facts.warmup_steps, facts.decay_steps, facts.peak_lr) == (1000, 30_000, 2.5e-5)
    assert (facts.ema_decay, facts.seed, facts.wandb_enabled) == (0.99, 42, True)
    assert (facts.action_dim, facts.action_horizon, facts.max_token_len) == (32, 50, 48)
    assert (facts.lora, facts.frozen, facts.loss_by_action) == (False, False, True)
    assert facts.formats == ("v2.0", "v2.1")
    low = load_run("pi0_libero_low_mem_finetune", stack="openpi").facts
    assert (low.lora, low.frozen, low.ema_decay, low.frozen_dtype) == (True, True, None, "bfloat16")
    fast = load_run("pi0_fast_libero", stack="openpi").facts
    assert (fast.loss_by_action, fast.action_dim, fast.max_token_len) == (False, 7, 180)


def test_every_config_that_openpi_knows_has_facts(user):
    from preflight.runs.openpi.run import config_names

    names = config_names()
    assert len(names) > 20
    for name in names:
        run = load_run(name)
        assert run.facts.stack == "openpi"
        json.dumps(run.facts.settings)
        assert run.facts.settings["batch_size"] == run.facts.batch_size


def test_settings_are_plain_values_by_their_dotted_keys(user, tmp_path):
    settings = load(tmp_path).facts.settings
    assert settings["model.paligemma_variant"] == "dummy"
    assert settings["data.repo_id"] == "lab/g1"
    assert settings["data.base_config.prompt_from_task"] is True
    assert settings["lr_schedule.decay_steps"] == 1245
    assert settings["data.assets.asset_id"] is None
    assert settings["weight_loader"] == "NoOpWeightLoader()"
    assert settings["freeze_filter"] == "Nothing()"


def test_a_filter_that_matches_nothing_freezes_nothing(user, tmp_path):
    run = load(tmp_path)
    assert changed(run, freeze_filter=run.config.model.get_freeze_filter()).facts.frozen is False  # the class itself
    assert changed(run, freeze_filter=nnx.Nothing()).facts.frozen is False
    assert changed(run, freeze_filter=nnx.Everything()).facts.frozen is True


def test_overrides_have_the_configs_own_types(user, tmp_path):
    config = load(
        tmp_path,
        "batch_size=8",
        "ema_decay=none",
        "wandb_enabled=true",
        "model.action_horizon=5",
        "optimizer.b2=0.9",
        "lr_schedule.peak_lr=1",
        "data.assets.asset_id=lab",
        "data.delta=true",
        'data.base_config.action_sequence_keys=["a", "b"]',
        "pytorch_training_precision=float32",
    ).config
    assert (config.batch_size, config.ema_decay, config.wandb_enabled) == (8, None, True)
    assert (config.model.action_horizon, config.optimizer.b2) == (5, 0.9)
    assert (config.lr_schedule.peak_lr, type(config.lr_schedule.peak_lr)) == (1.0, float)
    assert (config.data.assets.asset_id, config.data.delta) == ("lab", True)
    assert tuple(config.data.base_config.action_sequence_keys) == ("a", "b")
    assert config.pytorch_training_precision == "float32"
    assert type(config.model).__name__ == "SmallPi0Config"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("batch_size=eight", "batch_size must be a whole number, not 'eight'"),
        ("batch_size=2.5", "batch_size must be a whole number"),
        ("batch_size=0", "batch_size must be at least 1, not 0"),
        ("wandb_enabled=1", "wandb_enabled must be true or false"),
        ("ema_decay=1.0", "ema_decay must lie between 0 and 1"),
        ("keep_period=0", "keep_period must be at least 1"),
        ("seed=none", "seed cannot be unset"),
        ("model=pi0", "model is a table"),
        ("bach_size=4", "unknown key 'bach_size'; did you mean 'batch_size'?"),
        ("model.action_horizn=4", "unknown key 'model.action_horizn'; did you mean 'model.action_horizon'?"),
        ("model.paligemma_variant=gemma_3b", "unknown value 'gemma_3b'"),
        ("freeze_filter=.*llm.*", "freeze_filter must be set in the config's own file"),
        ("name=../up", "cannot be a folder's name"),
        ("fsdp_devices=0", "fsdp_devices must be at least 1"),
    ],
)
def test_what_no_run_can_start_with_is_refused(user, tmp_path, assignment, said):
    with pytest.raises(UsageError) as error:
        load(tmp_path, assignment)
    assert said in error.value.message


def test_an_unknown_config(user):
    with pytest.raises(UsageError, match="unknown openpi config 'g1_smal'; did you mean 'g1_small'"):
        load_run("g1_smal", stack="openpi")


def test_commands_in_hints_find_the_checkout(user, tmp_path):
    run = load_run("g1_small", checkout=user.fork, assignments=["batch_size=2"])
    words = command_line(run.facts, "check", "--set", "seed=1")
    assert words == f"preflight check g1_small --openpi {user.fork} --set batch_size=2 --set seed=1"


# The numbers.


def test_random_keys_are_openpis(user, tmp_path):
    run = load(tmp_path, "seed=7")
    train, init = jax.random.split(jax.random.key(7))  # scripts/train.py, main and init_train_state
    params, steps = run.keys()
    assert jnp.array_equal(jax.random.key_data(steps), jax.random.key_data(train))
    assert jnp.array_equal(jax.random.key_data(params), jax.random.key_data(jax.random.split(init)[1]))


@pytest.mark.parametrize("name", ["g1_small", "g1_small_pi05", "pi0_fast_libero"])
def test_the_batch_is_the_models(user, tmp_path, name):
    run = load(tmp_path, name=name)
    observation, actions = run.config.model.inputs_spec(batch_size=3)
    spec = run.batch_spec(3)
    with openpi("shared.array_typing").disable_typechecking():  # openpi's, which takes arrays alone
        again = openpi("models.model", "Observation").from_dict({**spec, "image": dict(spec["image"])})
    assert jax.tree.structure(again) == jax.tree.structure(observation)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(observation), strict=True):
        assert (tuple(ours.shape), ours.dtype) == (tuple(theirs.shape), theirs.dtype)
    assert (tuple(spec["actions"].shape), spec["actions"].dtype) == (tuple(actions.shape), actions.dtype)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(spec))


class Recorder:
    """A model that keeps what its loss is asked for."""

    trained = False

    def train(self):
        self.trained = True

    def compute_loss(self, rng, observation, actions, *, train):
        self.asked = rng, observation, actions, train
        return actions[..., 0]


def test_the_loss_is_the_models_own(user, tmp_path):
    run, model, key = load(tmp_path), Recorder(), jax.random.key(3)
    image = jnp.arange(6, dtype=jnp.uint8).reshape(2, 1, 1, 3)
    batch = {
        "image": {"base_0_rgb": image},
        "image_mask": {"base_0_rgb": jnp.ones(2, bool)},
        "state": jnp.ones((2, 4)),
        "actions": jnp.ones((2, 5, 4)),
    }
    assert run.compute_loss(model, key, batch, train=True).shape == (2, 5)
    rng, observation, actions, train = model.asked
    assert rng is key
    assert (train, model.trained) == (True, True)
    assert actions is batch["actions"]
    assert batch["image"]["base_0_rgb"] is image  # openpi's from_dict wrote into a copy
    assert jnp.array_equal(observation.images["base_0_rgb"], image.astype(jnp.float32) / 255 * 2 - 1)


@pytest.mark.slow
def test_the_loss_of_a_real_model(user, healthy):
    run = load(healthy, "model.action_horizon=4")
    model = run.create_model(run.keys()[0])
    sample = run.dataset()[0]
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], sample)
    key = jax.random.key(1)
    observation = openpi("models.model", "Observation").from_dict({**batch, "image": dict(batch["image"])})
    wanted = model.compute_loss(key, observation, batch["actions"], train=False)
    loss = run.compute_loss(model, key, batch, train=False)
    assert loss.shape == (1, 4)
    assert np.array_equal(loss, wanted)
    assert np.isfinite(loss).all()


def lora(run):
    model = openpi("models.pi0_config", "Pi0Config")(
        paligemma_variant="gemma_2b_lora", action_expert_variant="gemma_300m_lora"
    )
    return changed(run, model=model, freeze_filter=model.get_freeze_filter(), ema_decay=None)


def leaves(tree):
    """By path, without the level that NNX puts below each parameter."""
    return {
        "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in keys).removesuffix("/value"): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_trained_and_frozen_parameters_of_lora_are_openpis(user, tmp_path):
    run = lora(load(tmp_path))
    script = import_script(user.fork / "scripts" / "train.py")
    mesh = openpi("training.sharding").make_mesh(1)
    theirs, _ = script.init_train_state(run.config, jax.random.key(0), mesh, resume=True)
    ours = jax.eval_shape(lambda key: init_state(run, key), jax.random.key(0))
    theirs_by, ours_by = leaves(theirs.params), leaves(ours.params)
    assert {p: (x.shape, x.dtype) for p, x in ours_by.items()} == {p: (x.shape, x.dtype) for p, x in theirs_by.items()}
    trained = set(leaves(trainable(run, ours.params)))
    assert trained == set(leaves(theirs.params.filter(run.config.trainable_filter)))
    assert 0 < len(trained) < len(ours_by)
    for path, leaf in ours_by.items():
        assert (leaf.dtype == jnp.bfloat16) == (path not in trained), path
    assert {x.shape for x in jax.tree.leaves(ours.opt_state)} == {x.shape for x in jax.tree.leaves(theirs.opt_state)}


def test_the_learning_rate_is_the_schedules(user, tmp_path):
    run = load(tmp_path)
    schedule = run.config.lr_schedule.create()
    for step in (0, 1, 2, 700, 1245):
        assert float(run.learning_rate(jnp.int32(step))) == pytest.approx(float(schedule(step)), rel=1e-6)


def test_the_other_branches(user, tmp_path):
    assert set(load(tmp_path).branches()) == {"ema_decay=none"}  # openpi has no small model with adapters
    branches = load(tmp_path, name="g1_full").branches()
    assert set(branches) == {"ema_decay=none", "LoRA on"}
    assert branches["LoRA on"].facts.frozen is True
    back = branches["LoRA on"].branches()["LoRA off"]
    assert (back.facts.lora, back.facts.frozen) == (False, False)
    assert load(tmp_path, "ema_decay=none").branches()["ema_decay=0.99"].facts.ema_decay == 0.99
    small = load(tmp_path, name="g1_full").at_small_size()
    assert (small.facts.batch_size, small.facts.settings["model.paligemma_variant"]) == (2, "dummy")
    with pytest.raises(NotCovered, match="no small model with adapters"):
        branches["LoRA on"].at_small_size()


def test_checks_side_by_side_do_not_meet_in_openpis_switch_of_type_checks(user, tmp_path):
    # openpi turns the whole process's type checks off and on: without a lock, 9 of these 800 failed.
    run, interval = load(tmp_path), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            specs = list(pool.map(lambda _: run.batch_spec(2), range(800)))
    finally:
        sys.setswitchinterval(interval)
    assert all(spec["state"].shape == (2, 32) for spec in specs)
