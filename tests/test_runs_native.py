"""The native stack's runs: their branches, their small size, their data, and the weights that they start from."""

import flax.nnx as nnx
import jax
import numpy as np
import pytest
from healthy import EXAMPLE
from small_models import flat

from preflight.data.normalize import normalize, save
from preflight.data.tokenizer import count_tokens
from preflight.errors import DataError, UsageError
from preflight.models.pi0 import batch_spec
from preflight.runs import load_run
from preflight.runs.protocol import Prompt
from preflight.training.state import trainable

TROSSEN = "pi0_lighter_cup_trossen"
LORA = ("model.paligemma_variant=gemma_2b_lora", "model.action_expert_variant=gemma_300m_lora")


def parameters(run):
    return nnx.state(nnx.eval_shape(lambda: run.create_model(jax.random.key(0))))


def trained(run):
    return flat(trainable(run, parameters(run))).keys()


@pytest.mark.parametrize("assignments", [(), LORA, ("model.pi05=true", *LORA[1:]), ("freeze=['.*img.*']",)])
def test_the_small_run_has_the_large_ones_paths_and_trains_the_same(assignments):
    large = load_run(TROSSEN, assignments=[*assignments, "weights=/nonexistent"])
    small = large.at_small_size()
    assert flat(parameters(small)).keys() == flat(parameters(large)).keys()
    assert trained(small) == trained(large)
    assert (small.facts.freeze, small.facts.lora) == (large.facts.freeze, large.facts.lora)
    assert sum(leaf.size for leaf in flat(parameters(small)).values()) < 1_000_000
    assert small.facts.batch_size == 2
    assert small.load_weights({}) == {}  # those are of the large size
    assert small.batch_spec(2) == batch_spec(large.config.model, 2)  # the large one's data feed it


def test_branches_are_what_the_run_is_not():
    plain = load_run(TROSSEN)
    ema, lora = plain.branches().values()
    assert list(plain.branches()) == ["ema_decay=0.99", "LoRA on"]
    assert (ema.facts.ema_decay, ema.facts.lora) == (0.99, False)
    assert (lora.facts.ema_decay, lora.facts.lora, lora.facts.freeze) == (None, True, (r"(?!.*lora).*llm.*",))
    adapted = load_run(TROSSEN, assignments=[*LORA, "ema_decay=0.9"])
    ema, plain = adapted.branches().values()
    assert list(adapted.branches()) == ["ema_decay=none", "LoRA off"]
    assert (ema.facts.ema_decay, ema.facts.lora) == (None, True)
    assert (plain.facts.lora, plain.facts.freeze) == (False, ())


def test_weights_are_read_only_when_they_are_asked_for():
    assert load_run(TROSSEN).load_weights({}) == {}
    run = load_run(TROSSEN, assignments=["weights=/nonexistent"])
    with pytest.raises(DataError, match="weights: /nonexistent does not exist"):
        run.load_weights({})


def example(*assignments):
    return load_run(EXAMPLE, assignments=assignments)


@pytest.mark.parametrize("delta", ["[]", "[7, -6, 7, -6]", "[26]"])
def test_values_before_normalisation_are_those_of_the_samples(monkeypatch, delta):
    run = example(f"data.delta_actions={delta}", "model.action_horizon=20")
    frames = np.array([0, 5, 205, 220, 221, 490, 497])
    samples = [run.dataset()[int(frame)] for frame in frames]
    monkeypatch.setattr("preflight.data.cameras.read_frames", None)  # no picture is decoded
    values = example(f"data.delta_actions={delta}", "model.action_horizon=20").before_normalisation(frames)
    for name, shape in (("state", (7, 26)), ("actions", (7, 20, 26))):
        assert (values[name].shape, values[name].dtype) == (shape, np.float32)
        expected = np.stack([sample[name] for sample in samples])[..., :26]
        np.testing.assert_array_equal(normalize(values[name], run.dataset().stats[name], "zscore"), expected)
    assert values["actions"].flags.writeable  # a copy, not the dataset's columns


def test_the_columns_that_samples_are_made_of():
    camera = "observation.images.cam_high"
    assert example().columns() == ("observation.state", "action", camera, "timestamp", "task_index")
    assert example().cameras() == (camera,)
    blind = example("data.prompt=wave", "data.cameras.base_0_rgb=action")
    assert blind.columns() == ("observation.state", "action")


def test_statistics_are_computed_or_read(tmp_path):
    run = example("data.delta_actions=[26]")
    computed = run.statistics()
    assert (computed.norm, computed.path, computed.elsewhere) == ("zscore", None, ())
    assert computed.stats is run.dataset().stats
    path = tmp_path / "norm_stats.json"
    reader = example(f"data.norm_stats={path}", "model.pi05=true")
    missing = reader.statistics()
    assert (missing.norm, missing.path, missing.stats) == ("quantile", path, None)
    assert missing.command.startswith("preflight norm-stats ")
    assert missing.command.endswith("--set model.pi05=true --write")
    assert missing.other_command.endswith("--set model.pi05=true --set data.norm_stats=none")
    assert reader.statistics(read=False) == missing
    save(computed.stats, path)
    np.testing.assert_array_equal(reader.statistics().stats["actions"].q99, computed.stats["actions"].q99)
    path.write_text("{}")
    with pytest.raises(DataError, match="is no norm_stats.json"):
        reader.statistics()


def test_values_and_statistics_are_there_where_something_else_is_wrong():
    narrow = example("model.pi05=true", "model.max_token_len=10")
    with pytest.raises(DataError, match="have no room"):
        narrow.dataset()
    expected = example("model.pi05=true").statistics().stats
    for name, stats in narrow.statistics().stats.items():
        np.testing.assert_array_equal(stats.mean, expected[name].mean)
        np.testing.assert_array_equal(stats.q01, expected[name].q01)
    assert narrow.before_normalisation(np.array([3]))["actions"].shape == (1, 50, 26)
    with pytest.raises(UsageError, match="data.delta_actions covers 27 dimensions"):
        example("data.delta_actions=[27]").before_normalisation(np.array([3]))


def test_prompts_are_counted_before_they_are_cut():
    task = "Pick up the yellow bottle on the table."
    assert example("model.max_token_len=8").prompts() == {0: Prompt(text=task, num_tokens=15)}
    assert example("model.pi05=true").prompts() == {0: Prompt(text=task, num_tokens=142)}
    assert example("data.prompt=wave").prompts() == {0: Prompt(text="wave", num_tokens=count_tokens("wave"))}
    with pytest.raises(DataError, match="have no room for the state's 26 dimensions"):
        example("model.pi05=true", "model.max_token_len=100").prompts()
