"""What an openpi run fetches: weights, statistics and the tokenizer, looked for here and never waited for."""

import dataclasses
import json
import socket
import time
from pathlib import Path

import jax
import numpy as np
import openpi_fork
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from healthy import HEALTHY, outcome_of
from openpi_fork import changed, load, write_stats

from checks.context import CheckContext
from preflight.errors import DataError, NotCovered, UsageError
from preflight.runs.openpi.cache import NotCachedError, from_cache
from preflight.runs.openpi.install import openpi
from preflight.telemetry import network
from preflight.training.state import pure

pytestmark = openpi_fork.MARKS

RELEASED = "gs://openpi-assets/checkpoints/pi0_base/params"


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    with openpi_fork.opened(tmp_path_factory) as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch):
    """Whoever would open a connection fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 60


def loading(run, path):
    return changed(run, weight_loader=openpi("training.weight_loaders", "CheckpointWeightLoader")(str(path)))


def shapes(run):
    return pure(nnx.state(nnx.eval_shape(lambda: run.create_model(jax.random.key(0)))))


@pytest.fixture(scope="module")
def params(user):
    """The shapes of the small model's parameters."""
    return shapes(load(Path()))


@pytest.fixture(scope="module")
def checkpoint(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "9"
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    ocp.PyTreeCheckpointer().save(folder / "params", {"params": zeros})
    return folder


def test_fresh_parameters(user, params, tmp_path):
    run = load(tmp_path)
    assert run.weights() is None
    assert run.weights_fit(params) is None
    assert run.load_weights(params) == {}


def test_released_weights_that_are_not_cached(user, params, tmp_path, monkeypatch):  # F33
    run = loading(load(tmp_path), RELEASED)
    found = run.weights()
    assert (found.name, found.path, found.host) == (RELEASED, None, "storage.googleapis.com")
    with pytest.raises(DataError, match=f"{RELEASED} are not on this machine") as error:
        run.weights_fit(params)
    assert RELEASED in error.value.hint
    monkeypatch.setattr(network, "unreachable", lambda host, port: "no answer")
    with pytest.raises(DataError, match=r"storage\.googleapis\.com does not answer: no answer"):
        run.load_weights(params)
    outcome = outcome_of("config.weights", CheckContext(run=run, probes=HEALTHY))
    assert outcome.status == "fail"
    assert RELEASED in outcome.summary
    assert "storage.googleapis.com does not answer" in outcome.summary
    online = dataclasses.replace(HEALTHY, unreachable=lambda host, port: None)
    outcome = outcome_of("config.weights", CheckContext(run=run, probes=online))
    assert outcome.status == "warn"
    assert RELEASED in outcome.hint.commands[0]


def test_released_weights_in_the_cache(user, params, checkpoint, tmp_path, monkeypatch):
    place = tmp_path / "openpi-assets" / "checkpoints" / "pi0_base"
    place.mkdir(parents=True)
    (place / "params").symlink_to(checkpoint / "params")
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
    run = loading(load(tmp_path), RELEASED)
    assert run.weights().path == place / "params"
    fit = run.weights_fit(params)
    assert (len(fit.fitting), fit.problems, fit.extra) == (50, (), ())


def test_a_local_checkpoint(user, params, checkpoint, tmp_path):
    run = loading(load(tmp_path), checkpoint / "params")
    found = run.weights()
    assert (found.path, found.host) == (checkpoint / "params", None)
    outcome = outcome_of("config.weights", CheckContext(run=run, probes=HEALTHY))
    assert (outcome.status, outcome.summary) == ("pass", "50 leaves of the checkpoint fit by path and shape")
    loaded = run.load_weights(params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), loaded) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params
    )


def test_a_checkpoint_of_other_dimensions(user, checkpoint, tmp_path):  # F32
    run = loading(load(tmp_path, "model.action_dim=31"), checkpoint / "params")
    outcome = outcome_of("config.weights", CheckContext(run=run, probes=HEALTHY))
    assert outcome.status == "fail"
    assert "[32, 64] in the checkpoint, [31, 64] in the model: model.action_dim=32" in outcome.summary
    with pytest.raises(DataError, match=r"the weights cannot be loaded: ValueError: .*Shape mismatch|action"):
        run.load_weights(shapes(run))


def test_a_checkpoint_of_the_other_architecture(user, checkpoint, tmp_path):  # F32
    run = loading(load(tmp_path, name="g1_small_pi05"), checkpoint / "params")
    outcome = outcome_of("config.weights", CheckContext(run=run, probes=HEALTHY))
    assert outcome.status == "fail"
    assert "model.pi05=false" in outcome.summary


def test_openpi_reads_the_params_folder_and_not_its_step(user, params, checkpoint, tmp_path):
    run = loading(load(tmp_path), checkpoint)
    with pytest.raises(DataError, match="step folder, and openpi reads its params folder") as error:
        run.weights_fit(params)
    assert str(checkpoint / "params") in error.value.hint
    with pytest.raises(DataError, match="the weights cannot be loaded"):
        run.load_weights(params)


def test_a_local_checkpoint_that_is_not_there(user, params, tmp_path):
    run = loading(load(tmp_path), tmp_path / "none" / "params")
    with pytest.raises(DataError, match="are not on this machine") as error:
        run.weights_fit(params)
    assert "--set weight_loader.params_path=" in error.value.hint


def test_the_weights_can_be_set(user, tmp_path):
    run = load(tmp_path)
    assert run.config.weight_loader == openpi("training.weight_loaders", "NoOpWeightLoader")()
    named = load(tmp_path, name="pi0_libero").config
    assert named.weight_loader.params_path == RELEASED
    other = load(tmp_path, f"weight_loader.params_path={tmp_path}/params", name="pi0_libero")
    assert other.weights().name == f"{tmp_path}/params"
    with pytest.raises(UsageError):
        load(tmp_path, "weight_loader=none")


def test_paligemmas_weights(user, params, tmp_path, monkeypatch):
    run = changed(load(tmp_path), weight_loader=openpi("training.weight_loaders", "PaliGemmaWeightLoader")())
    found = run.weights()
    assert found.name == "gs://vertex-model-garden-paligemma-us/paligemma/pt_224.npz"
    assert (found.path, found.host) == (None, "storage.googleapis.com")
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
    place = tmp_path / "vertex-model-garden-paligemma-us" / "paligemma" / "pt_224.npz"
    place.parent.mkdir(parents=True)
    np.savez(place, **{"params/llm/final_norm/scale": np.zeros(3, np.float32)})
    assert run.weights().path == place
    with pytest.raises(NotCovered, match=r"pt_224\.npz is there"):
        run.weights_fit(params)
    assert outcome_of("config.weights", CheckContext(run=run, probes=HEALTHY)).status == "skip"


def test_a_loader_of_the_users_own(user, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Own:
        def load(self, params):
            return params["nothing"]

    found = changed(load(tmp_path), weight_loader=Own()).weights()
    assert (found.name, found.path) == ("Own", None)


@pytest.fixture
def no_tokenizer(user, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path / "empty"))


def test_a_tokenizer_that_is_not_here_speaks_when_it_is_used(no_tokenizer, tmp_path):  # F34
    write_stats(load(tmp_path))
    run = load(tmp_path)
    assert run.cameras() == ("observation.images.cam_high",)
    assert run.statistics().stats is not None
    for use in (run.prompts, lambda: run.dataset()[0]):
        with pytest.raises(DataError, match=r"the tokenizer is not here: gs://big_vision/paligemma_tokenizer\.m") as e:
            use()
        assert str(tmp_path / "empty" / "big_vision" / "paligemma_tokenizer.model") in e.value.hint
    assert not (tmp_path / "empty").exists()


def test_the_check_of_prompts_says_that_the_tokenizer_is_missing(no_tokenizer, tmp_path):  # F34
    write_stats(load(tmp_path))
    outcome = outcome_of("data.prompts", CheckContext(run=load(tmp_path), probes=HEALTHY))
    assert outcome.status == "fail"
    assert outcome.summary.startswith("the tokenizer is not here: gs://big_vision/paligemma_tokenizer.model")
    assert "where there is a network: " in outcome.hint.text


def test_fasts_tokenizer_without_the_hub(user, tmp_path):
    run = load(tmp_path, name="pi0_fast_libero")
    transforms = run.data_config().model_transforms.inputs
    missing = next(t.tokenizer for t in transforms if hasattr(t, "tokenizer"))
    with pytest.raises(DataError, match="the tokenizer FASTTokenizer is not here"):
        missing.tokenize("prompt", None, None)


def test_released_statistics_that_are_not_cached(user, tmp_path):
    assets = openpi("training.config", "AssetsConfig")
    run = load(tmp_path)
    far = assets(assets_dir="gs://openpi-assets/checkpoints/pi0_base/assets", asset_id="trossen")
    run = changed(run, data=dataclasses.replace(run.config.data, assets=far))
    found = run.statistics()
    assert found.stats is None
    assert found.remote == "gs://openpi-assets/checkpoints/pi0_base/assets/trossen"
    outcome = outcome_of("data.norm-stats", CheckContext(run=run, probes=HEALTHY))
    assert outcome.status == "fail"
    assert found.remote in outcome.summary
    assert found.path.is_relative_to(user.home["OPENPI_DATA_HOME"])  # where it will be
    with pytest.raises(DataError, match=f"the normalisation statistics {found.remote} are not on this machine"):
        run.dataset()


def test_released_statistics_in_the_cache(user, tmp_path, monkeypatch):
    path = write_stats(load(tmp_path))
    place = tmp_path / "openpi-assets" / "assets" / "trossen" / "norm_stats.json"
    place.parent.mkdir(parents=True)
    place.write_text(path.read_text())
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
    far = openpi("training.config", "AssetsConfig")(assets_dir="gs://openpi-assets/assets", asset_id="trossen")
    run = load(tmp_path)
    run = changed(run, data=dataclasses.replace(run.config.data, assets=far))
    found = run.statistics()
    assert (found.path, found.remote) == (place, None)
    assert len(found.stats["state"].mean) == 26
    assert set(run.assets()) == {"trossen/norm_stats.json"}
    assert json.loads(run.assets()["trossen/norm_stats.json"]) == json.loads(place.read_text())


def test_openpi_is_as_it_was_after_a_look(user):
    download, tokenizers = openpi("shared.download"), openpi("models.tokenizer")
    before = (download.maybe_download, tokenizers.PaligemmaTokenizer, tokenizers.FASTTokenizer)
    with pytest.raises(NotCachedError), from_cache() as asked:
        download.maybe_download("gs://a/b")
    assert asked == ["gs://a/b"]
    assert before == (download.maybe_download, tokenizers.PaligemmaTokenizer, tokenizers.FASTTokenizer)
