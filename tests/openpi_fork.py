"""A user's fork of openpi: a copy of the installed checkout with configs, transforms and a tokenizer of our own."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from preflight.runs.openpi import install

ROOT = Path(__file__).parent.parent
DATASET = "lab/g1"  # the recording in examples/data/g1, by openpi's names
_DATA = ROOT / "tests" / "data" / "g1_v21"

# What a user adds to config.py: a robot's inputs, a data config, and a model that a CPU steps in a second.
CONFIGS = """

import dataclasses as _dc
from unittest import mock as _mock

import numpy as _np

import openpi.models.pi0 as _pi0


@_dc.dataclass(frozen=True)
class G1Inputs(_transforms.DataTransformFn):
    def __call__(self, data):
        image = _np.asarray(data["image"])
        if _np.issubdtype(image.dtype, _np.floating):
            image = (255 * image).astype(_np.uint8)
        if image.shape[0] == 3:
            image = _np.moveaxis(image, 0, -1)
        black = _np.zeros_like(image)
        sample = {
            "image": {"base_0_rgb": image, "left_wrist_0_rgb": black, "right_wrist_0_rgb": black},
            "image_mask": {"base_0_rgb": _np.True_, "left_wrist_0_rgb": _np.False_, "right_wrist_0_rgb": _np.False_},
            "state": _np.asarray(data["state"]),
        }
        return sample | {key: data[key] for key in ("actions", "prompt") if key in data}


@_dc.dataclass(frozen=True)
class G1DataConfig(DataConfigFactory):
    action_key: str = "action"
    delta: bool = False

    def create(self, assets_dirs, model_config):
        keys = {"image": "observation.images.cam_high", "state": "observation.state", "actions": self.action_key}
        repack = _transforms.RepackTransform({**keys, "prompt": "prompt"})
        data = _transforms.Group(inputs=[G1Inputs()])
        if self.delta:
            mask = _transforms.make_bool_mask(26)
            data = data.push(inputs=[_transforms.DeltaActions(mask)], outputs=[_transforms.AbsoluteActions(mask)])
        return _dc.replace(
            self.create_base_config(assets_dirs, model_config),
            repack_transforms=_transforms.Group(inputs=[repack]),
            data_transforms=data,
            model_transforms=ModelTransformFactory()(model_config),
            action_sequence_keys=("action",),
        )


class SmallPi0(_pi0.Pi0):
    def compute_loss(self, rng, observation, actions, *, train=False):
        # Without augmentation, which takes XLA's compiler for CPUs minutes.
        return super().compute_loss(rng, observation, actions, train=False)


@_dc.dataclass(frozen=True)
class SmallPi0Config(pi0_config.Pi0Config):
    def create(self, rng):
        module = _pi0._siglip.Module
        with _mock.patch.object(_pi0._siglip, "Module", lambda **sizes: module(**{**sizes, "variant": "mu/16"})):
            return SmallPi0(self, rngs=nnx.Rngs(rng))


def _g1(name, model, **changes):
    small = {
        "batch_size": 4, "num_train_steps": 20, "log_interval": 5, "save_interval": 10, "keep_period": None,
        "lr_schedule": _optimizer.CosineDecaySchedule(warmup_steps=2, peak_lr=1e-3, decay_steps=20, decay_lr=1e-4),
        "ema_decay": 0.5, "wandb_enabled": False,
    }
    data = G1DataConfig(repo_id="lab/g1", base_config=DataConfig(prompt_from_task=True))
    return TrainConfig(name=name, model=model, **{"data": data, **small, **changes})


_SMALL = {"paligemma_variant": "dummy", "action_expert_variant": "dummy", "action_horizon": 10, "dtype": "float32"}
for _config in (
    _g1("g1_small", SmallPi0Config(**_SMALL)),
    _g1("g1_small_fake", SmallPi0Config(**_SMALL), data=FakeDataConfig()),
    _g1("g1_small_pi05", SmallPi0Config(pi05=True, **_SMALL)),
    _g1("g1_full", pi0_config.Pi0Config(), batch_size=32, num_train_steps=155),
):
    _CONFIGS_DICT[_config.name] = _config
"""


def is_installed():
    return importlib.util.find_spec("openpi") is not None and importlib.util.find_spec("openpi.training") is not None


def checkout():
    """The installed openpi's checkout."""
    return Path(importlib.util.find_spec("openpi").submodule_search_locations[0]).parents[1]


def make_fork(folder, configs=CONFIGS):
    """Copies the checkout's code and adds the configs; returns the folder for --openpi."""
    source = checkout()
    shutil.copytree(source / "src" / "openpi", folder / "src" / "openpi", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(source / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "src" / "openpi" / "training" / "config.py").open("a") as file:
        file.write(configs)
    return folder


def make_home(folder, texts=("pick up the lighter", "stack the cups")):
    """What a user has in caches: the dataset, and a tokenizer in PaliGemma's place. Returns environment variables."""
    import sentencepiece

    dataset = folder / "lerobot" / DATASET
    shutil.copytree(_DATA, dataset)
    tokenizer = folder / "openpi" / "big_vision" / "paligemma_tokenizer.model"
    tokenizer.parent.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, "Task: State: Action:", *map(str, range(256))] * 3),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").rename(tokenizer)
    return {
        "HF_LEROBOT_HOME": str(folder / "lerobot"),
        "HF_HOME": str(folder / "hf"),
        "OPENPI_DATA_HOME": str(folder / "openpi"),
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
    }


def environment(home):
    return {**os.environ, **home}


# A module of tests on real openpi says `pytestmark = openpi_fork.MARKS`. Other projects' warnings are theirs.
MARKS = [
    pytest.mark.openpi,
    pytest.mark.skipif(not is_installed(), reason="openpi is not installed: make test-openpi-pins OPENPI=DIR"),
    pytest.mark.filterwarnings("ignore"),
    *(pytest.mark.filterwarnings(f"error:::{package}") for package in ("preflight", "checks", "bench")),
]


@dataclasses.dataclass(frozen=True)
class Opened:
    """The fork that this process imports as openpi, and what its user has."""

    fork: Path
    home: dict[str, str]
    lerobot: Path

    def dataset(self, name):
        """A copy of the healthy dataset to break; returns its folder and the override that trains on it."""
        shutil.copytree(self.lerobot / DATASET, self.lerobot / "lab" / name)
        return self.lerobot / "lab" / name, f"data.repo_id=lab/{name}"


_made: list[Opened] = []


@contextlib.contextmanager
def opened(tmp_path_factory):
    """While it holds, a fork is openpi in this process, with its home; made and imported once for all tests of it."""
    if not _made:
        folder = tmp_path_factory.mktemp("openpi")
        home = make_home(folder / "home")
        _made.append(Opened(make_fork(folder / "fork"), home, Path(home["HF_LEROBOT_HOME"])))
        # Another test may have imported the installed one.
        for name in [name for name in sys.modules if name.split(".")[0] == "openpi"]:
            del sys.modules[name]
    user = _made[0]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in user.home.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        patch.setattr(sys, "path", list(sys.path))
        install.use_checkout(user.fork)
        import jax

        before = jax.config.jax_numpy_rank_promotion
        jax.config.update("jax_numpy_rank_promotion", "allow")  # which openpi does
        assert Path(install.openpi("training.data_loader").__file__).is_relative_to(user.fork)
        for name in ("lerobot.common.constants", "lerobot.common.datasets.lerobot_dataset"):
            patch.setattr(sys.modules[name], "HF_LEROBOT_HOME", user.lerobot)
        yield user
        jax.config.update("jax_numpy_rank_promotion", before)


# Ten passes over the dataset's 498 frames, and a schedule that fits.
SOUND = ("num_train_steps=1245", "lr_schedule.decay_steps=1245", "save_interval=415", "keep_period=415")


def load(folder, *assignments, name="g1_small"):
    """A run with which nothing is wrong but what the overrides break; its assets and checkpoints lie below a folder."""
    from preflight.runs import load_run

    places = (f"assets_base_dir={folder / 'assets'}", f"checkpoint_base_dir={folder / 'checkpoints'}")
    return load_run(name, stack="openpi", assignments=[*places, *SOUND, *assignments])


def changed(run, **changes):
    """The run with fields of its config replaced that no override reaches."""
    return type(run)(dataclasses.replace(run.config, **changes), assignments=run.facts.assignments)


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A data config around another; what it does not have itself is the other's."""

    inner: object

    def __getattr__(self, name):
        return getattr(self.inner, name)


def write_stats(run, path=None, change=lambda stats: stats):
    """What `scripts/compute_norm_stats.py` writes, exact, where it writes it; changed by a function of the dict."""
    import numpy as np

    from preflight.data.normalize import compute, stats_to_json

    values = run.before_normalisation(np.arange(498))
    stats = {name: compute(value.reshape(-1, value.shape[-1])) for name, value in values.items()}
    path = path or run.config.assets_dirs / run.data_config().repo_id / "norm_stats.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(change(stats_to_json(stats))))
    return path


def add_camera(root, key):
    """Gives a dataset a second camera: the first one's pictures again."""
    videos = root / "videos" / "chunk-000"
    shutil.copytree(videos / "observation.images.cam_high", videos / key)
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"][key] = info["features"]["observation.images.cam_high"]
    info["total_videos"] *= 2
    (root / "meta" / "info.json").write_text(json.dumps(info))
