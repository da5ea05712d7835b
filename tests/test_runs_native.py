"""The native stack's runs: their branches, their small size, and the weights that they start from."""

import flax.nnx as nnx
import jax
import pytest
from small_models import flat

from preflight.errors import DataError
from preflight.models.pi0 import batch_spec
from preflight.runs import load_run

TROSSEN = "pi0_lighter_cup_trossen"
LORA = ("model.paligemma_variant=gemma_2b_lora", "model.action_expert_variant=gemma_300m_lora")


def parameters(run):
    return nnx.state(nnx.eval_shape(lambda: run.create_model(jax.random.key(0))))


def trained(run):
    return flat(nnx.split_state(parameters(run), run.trainable(), ...)[0]).keys()


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
