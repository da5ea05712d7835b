"""The data of openpi's runs: samples bit for bit, the loader's workers, cameras, prompts, statistics."""

import dataclasses
import json
import os
import pickle

import numpy as np
import openpi_fork
import pytest
from healthy import HEALTHY, spoken
from openpi_fork import changed, load, write_stats

from checks import CHECKLIST, data
from checks.context import CheckContext
from preflight.checklist import run_checks
from preflight.data.loader import BatchLoader, start_worker_server
from preflight.data.normalize import save
from preflight.data.streamed_stats import exact_stats
from preflight.errors import DataError, NotCovered
from preflight.runs import load_run
from preflight.runs.openpi.install import openpi
from preflight.runs.openpi.samples import OpenpiSamples

pytestmark = openpi_fork.MARKS


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    with openpi_fork.opened(tmp_path_factory) as opened:
        yield opened


@pytest.fixture(scope="module")
def healthy(user, tmp_path_factory):
    """A folder with the healthy run's statistics."""
    folder = tmp_path_factory.mktemp("healthy")
    for name in ("g1_small", "g1_small_pi05"):
        write_stats(load(folder, name=name))
    return folder


def openpis_samples(run):
    """openpi's own dataset with its own transforms, made as its `create_data_loader` makes it."""
    create, transform = openpi("training.data_loader", "create_torch_dataset", "transform_dataset")
    data = run.config.data.create(run.config.assets_dirs, run.config.model)
    return transform(create(data, run.config.model.action_horizon, run.config.model), data)


def flat(sample, prefix=""):
    if not isinstance(sample, dict):
        return {prefix: np.asarray(sample)}
    return {path: leaf for key, item in sample.items() for path, leaf in flat(item, f"{prefix}/{key}").items()}


@pytest.mark.parametrize("name", ["g1_small", "g1_small_pi05"])
@pytest.mark.parametrize("delta", ["false", "true"])
def test_samples_are_openpis_bit_for_bit(healthy, name, delta):
    run = load(healthy, f"data.delta={delta}", name=name)
    ours, theirs = run.dataset(), openpis_samples(run)
    assert len(ours) == len(theirs) == 498
    narrowed = {np.dtype(np.int64): np.int32, np.dtype(np.float64): np.float32}  # as jax does on the device
    for index in (0, 250, 497):  # the last frame of an episode repeats its action
        mine, wanted = flat(ours[index]), flat(theirs[index])
        assert mine.keys() == wanted.keys()
        for path, leaf in wanted.items():
            assert mine[path].dtype == narrowed.get(leaf.dtype, leaf.dtype), path
            assert np.array_equal(mine[path], leaf.astype(mine[path].dtype)), path
    image = ours[250]["image"]["base_0_rgb"]
    assert (image.dtype, image.shape) == (np.uint8, (224, 224, 3))
    assert np.ptp(image) > 100
    for index in (-1, 498):
        with pytest.raises(IndexError):
            ours[index]


class Witness:
    """Samples with what the worker process is, beside them."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        import jax

        gpus = jax.config.jax_platforms != "cpu" or any(device.platform != "cpu" for device in jax.devices())
        here = np.frombuffer(openpi("transforms").__file__.encode().ljust(300), np.uint8).copy()
        return {
            **self.samples[index],
            "index": np.int64(index),
            "pid": np.int64(os.getpid()),
            "cpu": np.bool_(os.environ["JAX_PLATFORMS"] == "cpu" and not gpus),
            "openpi": here,
        }


@pytest.fixture
def worker_server():
    """A worker server of this test's own: another test's has not imported openpi, and should not have."""
    from multiprocessing import forkserver

    forkserver._forkserver._stop()  # there for tests
    yield
    forkserver._forkserver._stop()


def test_samples_come_through_real_workers(user, healthy, worker_server):
    run = load(healthy)
    start_worker_server(run.facts.worker_modules)
    samples = run.dataset()
    with BatchLoader(Witness(samples), batch_size=4, num_workers=2) as loader:
        batches = [next(loader) for _ in range(2)]
        pids = set(loader.worker_pids())
    assert os.getpid() not in pids
    assert len(pids) == 2
    for batch in batches:
        assert set(batch["pid"].tolist()) < pids
        assert batch["cpu"].all()  # no memory of a GPU is taken
        assert bytes(batch["openpi"][0]).decode().strip() == str(user.fork / "src" / "openpi" / "transforms.py")
        for row, index in enumerate(batch["index"].tolist()):
            wanted = flat(samples[index])
            for path, leaf in flat({key: batch[key] for key in samples[index]}).items():
                assert np.array_equal(leaf[row], wanted[path]), path


def test_a_transform_that_raises_names_the_users_line(user, healthy):
    run = load(healthy)

    @dataclasses.dataclass
    class Torn:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {}["wrist"]

    with pytest.raises(DataError, match=r"sample 2 cannot be made: KeyError: 'wrist' \(at .*test_openpi_data\.py:\d+"):
        OpenpiSamples(Torn(), run.source())[2]


def test_made_up_samples(healthy):
    run = load(healthy, name="g1_small_fake")
    assert (run.source(), run.columns(), run.cameras()) == (None, (), ())
    samples = run.dataset()
    assert len(samples) == 1024
    spec = flat_spec(run.batch_spec(1))
    found = flat(samples[0])
    assert found.keys() == spec.keys()
    for path, leaf in found.items():
        assert (leaf.shape, leaf.dtype) == (tuple(spec[path].shape[1:]), spec[path].dtype), path
    assert run.assets() == {}
    with pytest.raises(NotCovered, match="fake data"):
        run.prompts()


def flat_spec(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {path: leaf for key, item in tree.items() for path, leaf in flat_spec(item, f"{prefix}/{key}").items()}


def test_values_before_normalisation_are_what_openpi_normalises(healthy):
    run = load(healthy, "data.delta=true")
    create, transform = openpi("training.data_loader", "create_torch_dataset", "transform_dataset")
    data = run.data_config()
    plain = dataclasses.replace(data, model_transforms=dataclasses.replace(data.model_transforms, inputs=()))
    raw = create(plain, run.config.model.action_horizon, run.config.model)
    theirs = transform(raw, plain, skip_norm_stats=True)
    frames = np.array([0, 100, 497])
    ours = run.before_normalisation(frames)
    assert (ours["state"].shape, ours["actions"].shape) == ((3, 26), (3, 10, 26))
    for row, frame in enumerate(frames.tolist()):
        for key in ("state", "actions"):
            assert np.array_equal(ours[key][row], np.asarray(theirs[frame][key])), key


def test_columns_and_cameras(user, healthy):
    run = load(healthy)
    assert run.columns() == ("observation.images.cam_high", "observation.state", "action")
    assert run.cameras() == ("observation.images.cam_high",)
    root, named = user.dataset("other_camera")
    openpi_fork.add_camera(root, "observation.images.decoy")
    assert load(healthy, named).cameras() == ("observation.images.cam_high",)


def test_statistics_and_assets(user, tmp_path):
    run = load(tmp_path)
    missing = run.statistics()
    assert missing.path == tmp_path / "assets" / "g1_small" / "lab" / "g1" / "norm_stats.json"
    assert (missing.stats, missing.elsewhere, missing.remote, missing.norm) == (None, (), None, "zscore")
    assert run.assets() == {}
    with pytest.raises(DataError, match="the normalisation statistics are missing") as error:
        run.dataset()
    assert error.value.hint.startswith("preflight norm-stats g1_small ")
    path = write_stats(run)
    run = load(tmp_path)
    assert run.statistics().path == path
    assert {name: json.loads(text) for name, text in run.assets().items()} == {
        "lab/g1/norm_stats.json": json.loads(path.read_text())
    }
    other = load(tmp_path, "data.assets.asset_id=g1").statistics()
    assert other.path == tmp_path / "assets" / "g1_small" / "g1" / "norm_stats.json"
    assert (other.stats, other.elsewhere) == (None, (path,))
    assert load(tmp_path, name="g1_small_pi05").statistics().norm == "quantile"


@pytest.mark.parametrize("delta", ["false", "true"])
def test_statistics_of_all_frames_are_those_of_what_openpi_normalises(healthy, delta):
    run = load(healthy, f"data.delta={delta}")
    source = run.all_before_normalisation()
    assert ((source.frames, source.horizon), dict(source.widths)) == ((498, 10), {"state": 26, "actions": 26})
    stats, summaries = exact_stats(source)
    assert [block.frames for block in source.blocks()] == [498]
    for name, values in run.before_normalisation(np.arange(498)).items():
        x = values.reshape(-1, 26).astype(np.float64)
        assert summaries[name].count == len(x)
        np.testing.assert_allclose(stats[name].mean, x.mean(axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(stats[name].std, x.std(axis=0), rtol=1e-9)
        np.testing.assert_allclose(
            [stats[name].q01, stats[name].q99], np.quantile(x, [0.01, 0.99], axis=0), rtol=1e-9, atol=1e-12
        )
    frames, steps = np.array([0, 3, 3, 497]), np.array([0, 9, 2, 5])
    for name, drawn in source.drawn(frames, steps).items():
        values = run.before_normalisation(frames)[name]
        assert np.array_equal(drawn, values if name == "state" else values[np.arange(4), steps])


def test_openpi_reads_what_is_written(healthy, tmp_path):
    stats, _ = exact_stats(load(healthy).all_before_normalisation())
    save(stats, tmp_path / "norm_stats.json")
    loaded = openpi("shared.normalize", "load")(tmp_path)
    for name, own in stats.items():
        for field in ("mean", "std", "q01", "q99"):
            assert np.array_equal(getattr(loaded[name], field), getattr(own, field))


def test_statistics_that_are_damaged(user, tmp_path):
    path = write_stats(load(tmp_path))
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match="the data config cannot be made|norm_stats"):
        load(tmp_path).statistics()


@dataclasses.dataclass(frozen=True)
class Prompted(openpi_fork.Wrapped):
    """A data config whose frames have no prompt of their own, and perhaps one for all."""

    default_prompt: str | None = None

    def create(self, assets_dirs, model):
        data = self.inner.create(assets_dirs, model)
        config, transforms = openpi("training.config"), openpi("transforms")
        keys = {key: name for key, name in data.repack_transforms.inputs[0].structure.items() if key != "prompt"}
        return dataclasses.replace(
            data,
            repack_transforms=transforms.Group(inputs=[transforms.RepackTransform(keys)]),
            model_transforms=config.ModelTransformFactory(default_prompt=self.default_prompt)(model),
        )


def with_prompt(run, text):
    return changed(run, data=Prompted(run.config.data, text))


def test_prompts_of_tasks(healthy):
    assert load(healthy).prompts().keys() == {0}
    plain, state = load(healthy).prompts()[0], load(healthy, name="g1_small_pi05").prompts()[0]
    assert plain.text == state.text == "Pick up the yellow bottle on the table."
    assert plain.num_tokens == sum(load(healthy).dataset()[0]["tokenized_prompt_mask"]) == 41
    assert state.num_tokens > plain.num_tokens + 26  # pi0.5 reads the state in the prompt


def test_a_default_prompt_and_none(healthy):
    prompt = with_prompt(load(healthy), "stack the cups").prompts()[0]
    assert prompt.text == "stack the cups"
    assert 0 < prompt.num_tokens < 41
    assert with_prompt(load(healthy), None).prompts()[0].text is None


def test_no_prompt_fails_the_check_of_prompts_alone(healthy):  # F36
    context = CheckContext(run=with_prompt(load(healthy), None), probes=HEALTHY)
    results = {r.check.id: r for r in run_checks(data.CHECKS, context, max_parallel=1)}
    assert spoken(results) == {"data.prompts"}
    assert "Prompt is required" in results["data.prompts"].outcome.summary


def test_rlds_is_not_covered(user, tmp_path):
    run = load_run("pi05_full_droid_finetune", stack="openpi", assignments=[f"assets_base_dir={tmp_path}"])
    with pytest.raises(NotCovered, match="RLDS data .* is streamed by TensorFlow"):
        run.source()
    wanted = {"data.version", "data.present", "data.metadata", "config.batch"}
    results = run_checks([c for c in CHECKLIST if c.id in wanted], CheckContext(run=run, probes=HEALTHY))
    assert {r.check.id: r.status for r in results} == dict.fromkeys(wanted, "skip")
    assert any("RLDS" in r.outcome.summary for r in results)


def test_a_config_whose_data_cannot_be_made_names_the_line(user, tmp_path):
    run = load_run("paligemma_binning_droid", stack="openpi")  # openpi's own mistake
    with pytest.raises(DataError, match=r"the data config cannot be made: TypeError: .*roboarena_config\.py:\d+: "):
        run.source()


def test_a_config_for_inference_names_no_dataset(user):
    with pytest.raises(DataError, match="pi0_aloha names no dataset: it is a config for inference"):
        load_run("pi0_aloha", stack="openpi").source()
    named = load_run("pi0_aloha", stack="openpi", assignments=["data.repo_id=lab/g1"])  # as its hint says
    assert named.source().name == "g1"


@dataclasses.dataclass(frozen=True)
class Forgetful(openpi_fork.Wrapped):
    """A data config whose transforms lose one of the keys that a model needs."""

    lost: str = "image"

    def create(self, assets_dirs, model):
        data, lost = self.inner.create(assets_dirs, model), self.lost
        lose = lambda sample: {key: value for key, value in sample.items() if key != lost}  # noqa: E731
        inputs = [*data.data_transforms.inputs, lose]
        return dataclasses.replace(data, data_transforms=dataclasses.replace(data.data_transforms, inputs=inputs))


@pytest.mark.parametrize(
    ("lost", "look"),
    [("image", lambda run: run.cameras()), ("actions", lambda run: run.before_normalisation(np.arange(2)))],
)
def test_transforms_that_lose_a_key(healthy, lost, look):
    run = load(healthy)
    with pytest.raises(DataError, match=f"the repack and data transforms make no '{lost}'") as error:
        look(changed(run, data=Forgetful(run.config.data, lost)))
    assert "state" in error.value.hint


def test_what_goes_to_workers_is_small(healthy):
    assert len(pickle.dumps(load(healthy).dataset())) < 20_000_000
