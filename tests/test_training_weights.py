"""Training that starts from a checkpoint's parameters."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from small_models import flat

from preflight.errors import DataError
from preflight.models.weights import load_weights
from preflight.runs import load_run
from preflight.training.folder import run_folder, saved_steps
from preflight.training.loop import train
from preflight.training.state import first_state, init_state, pure

EXAMPLE = str(Path(__file__).parent.parent / "examples" / "g1.toml")
TINY = [
    "model.siglip_variant=mu/112",
    "model.action_horizon=4",
    "batch_size=2",
    "num_workers=0",
    "num_train_steps=2",
    "log_interval=1",
    "save_interval=9",
    "lr_schedule.warmup_steps=2",
    "lr_schedule.decay_steps=6",
    "wandb_enabled=false",
]
LORA = ["model.paligemma_variant=dummy_lora", "model.action_expert_variant=dummy_lora"]


def tiny_run(base, *assignments):
    return load_run(EXAMPLE, assignments=[*TINY, f"checkpoint_base_dir={base}", *assignments])


def fly(run, name="run", **options):
    said = []
    return train(run, run_folder(run.facts, name), say=said.append, **options), said


def abstract(run):
    return jax.eval_shape(lambda key: init_state(run, key), jax.random.key(0))


def begin(run):
    devices = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    return first_state(run, jax.random.key(3), jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec()))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint that our own training wrote."""
    summary, _ = fly(tiny_run(tmp_path_factory.mktemp("source")))
    return summary.folder / "1"


def test_the_state_starts_with_the_checkpoints_parameters(source, tmp_path):
    run = tiny_run(tmp_path, f"weights={source}", "ema_decay=0.9")
    kept = load_weights(source, pure(abstract(run).params)).params
    state = begin(run)
    assert int(state.step) == 0
    for tree in (state.params, state.ema_params):
        found = flat(tree)
        assert found.keys() == flat(kept).keys()
        for path, leaf in flat(kept).items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)
            assert len(found[path].devices()) == 2
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.opt_state))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (abstract(run), state))
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])


def test_adapters_that_are_missing_are_drawn(source, tmp_path):
    run = tiny_run(tmp_path, f"weights={source}", *LORA)
    kept = flat(load_weights(source, pure(abstract(run).params)).params)
    found = flat(begin(run).params)
    adapters = found.keys() - kept.keys()
    assert {"lora" in path for path in adapters} == {True}
    assert len(adapters) == 20
    for path, leaf in found.items():
        if path in kept:
            np.testing.assert_array_equal(leaf, kept[path], err_msg=path)
        else:
            assert float(leaf.std()) == pytest.approx(0.01, rel=0.2)


def test_no_random_numbers_are_drawn_for_what_is_replaced(source, tmp_path):
    run = tiny_run(tmp_path, f"weights={source}")
    kept = run.load_weights(pure(abstract(run).params))

    def operations(weights):
        make = jax.jit(lambda key, weights: init_state(run, key, weights))
        return make.lower(jax.random.key(0), weights).compile().as_text().count(" xor(")

    assert operations({}) > 0
    assert operations(kept) == 0


def test_a_run_flies_on_from_a_checkpoint_and_resumes_without_it(source, tmp_path):
    weights = Path(shutil.copytree(source, tmp_path / "weights"))
    run = tiny_run(tmp_path, f"weights={weights}", "seed=7", "num_train_steps=1")
    shapes = pure(abstract(run).params)
    before = flat(load_weights(weights, shapes).params)
    summary, said = fly(run)
    assert said[1] == f"Starting from {weights}"
    after = flat(load_weights(summary.folder / "0", shapes).params)
    # Adam's first step is the learning rate, 1e-3 / 3, in every parameter.
    assert 1e-4 < max(np.abs(after[path] - leaf).max() for path, leaf in before.items()) < 4e-4
    shutil.rmtree(weights)
    resumed, said = fly(tiny_run(tmp_path, "seed=7"), resume=True)
    assert resumed.steps == 1
    assert not any("Starting" in line for line in said)
    assert saved_steps(summary.folder)[-1] == 1


def test_tracing_reads_no_file(tmp_path):
    traced, plain = (abstract(tiny_run(tmp_path, *extra)) for extra in (["weights=/nonexistent"], []))
    assert jax.tree.leaves(traced) == jax.tree.leaves(plain)


def test_weights_that_do_not_fit_leave_nothing_behind(source, tmp_path):
    with pytest.raises(DataError, match="does not fit the model") as caught:
        fly(tiny_run(tmp_path / "base", f"weights={source}", "model.pi05=true"))
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match="does not exist"):
        fly(tiny_run(tmp_path / "base", "weights=nowhere"))
    assert not (tmp_path / "base").exists()
