"""Finding and importing openpi: tiny packages of that name, each with one thing wrong, in processes of their own."""

import json
import os
import re
import subprocess
import sys

import pytest
from command import EXAMPLE, ROOT

from preflight.config.builtin import BUILTIN_CONFIGS
from preflight.errors import UsageError
from preflight.runs.openpi import install

# As much of openpi's config module as a run's facts are read from.
CONFIG = """
import dataclasses


class ModelType:
    value = "pi0"


@dataclasses.dataclass(frozen=True)
class Model:
    action_dim: int = 32
    action_horizon: int = 50
    max_token_len: int = 48
    paligemma_variant: str = "gemma_2b"
    model_type = ModelType()


@dataclasses.dataclass(frozen=True)
class Data:
    repo_id: str = "lab/cups"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    name: str
    project_name: str = "openpi"
    model: Model = Model()
    data: Data = Data()
    lr_schedule: Data = Data()
    freeze_filter: object = None
    ema_decay: float | None = 0.99
    checkpoint_base_dir: str = "./checkpoints"
    batch_size: int = 7
    num_workers: int = 2
    num_train_steps: int = 30
    log_interval: int = 10
    save_interval: int = 10
    keep_period: int | None = None
    fsdp_devices: int = 1
    seed: int = 42
    wandb_enabled: bool = False


_CONFIGS_DICT = {name: TrainConfig(name) for name in ("cups", "pi0_lighter_cup_test")}


def get_config(name):
    return _CONFIGS_DICT[name]
"""


def make_checkout(folder, config=CONFIG, **modules):
    """A checkout with a config module, and further modules by their dotted names below openpi."""
    for name, text in {"training.config": config, **modules}.items():
        file = folder.joinpath("src", "openpi", *name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for package in (*file.relative_to(folder / "src").parents,)[:-1]:
            (folder / "src" / package / "__init__.py").touch()
    return folder


def environment(checkout=None):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"COLUMNS": "200"} | ({"PYTHONPATH": str(checkout / "src")} if checkout else {})


def preflight(*words, cwd, installed=None):
    """The command where the checkout `installed` is found by `import openpi`; where it is None, openpi is not there."""
    # An entry of None is how Python itself knows a module that cannot be imported.
    missing = "" if installed or "--openpi" in words else "sys.modules['openpi'] = None; "
    code = f"import sys; {missing}from preflight.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, words)],
        cwd=cwd,
        env=environment(installed),
        capture_output=True,
        text=True,
        timeout=120,
    )


def refused(*words, cwd, installed=None):
    """What the command says that refuses to start, on one line; no traceback, nothing on stdout."""
    done = preflight(*words, cwd=cwd, installed=installed)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return re.sub(r"\s+", " ", done.stderr)


def python(code, *, cwd, installed):
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=cwd,
        env=environment(installed),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_openpi_is_missing(tmp_path):
    said = refused("check", "pi0_libero", "--stack", "openpi", cwd=tmp_path)
    assert said.startswith("preflight: openpi is not installed in this environment hint: run preflight where openpi ")
    assert "--openpi DIR" in said


def test_without_openpi_the_native_configs_are_all_there_is(tmp_path):
    done = preflight("list-configs", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("native:")
    said = refused("check", "pi0_lighter_cup_demonstration", cwd=tmp_path)
    assert "unknown config 'pi0_lighter_cup_demonstration'; did you mean 'pi0_lighter_cup_demo'?" in said


@pytest.mark.parametrize(
    ("inside", "advice"),
    [
        ("nowhere", "name the folder that holds src/, scripts/ and pyproject.toml"),
        (".", "name the folder that holds src/, scripts/ and pyproject.toml"),
        ("fork/src", "pyproject.toml, one or two above it"),
        ("fork/src/openpi", "pyproject.toml, one or two above it"),
    ],
)
def test_the_folder_is_no_checkout(tmp_path, inside, advice):
    make_checkout(tmp_path / "fork")
    folder = tmp_path / inside
    with pytest.raises(UsageError, match=r"no openpi checkout, it has no src/openpi/training/config\.py") as error:
        install.use_checkout(folder)
    assert str(folder) in error.value.message
    assert error.value.hint.endswith(advice)


def test_the_command_says_so_too(tmp_path):
    said = refused("check", "cups", "--openpi", "nowhere", cwd=tmp_path)
    assert said.startswith("preflight: --openpi nowhere: no openpi checkout,")


def test_a_dependency_is_missing(tmp_path):
    fork = make_checkout(tmp_path / "fork", config="import augmax_that_is_not_here\n")
    said = refused("check", "cups", "--openpi", fork, cwd=tmp_path)
    assert f"openpi at {fork}/src/openpi is only half installed" in said
    assert "importing openpi.training.config needs 'augmax_that_is_not_here', which is not here" in said
    assert "`uv sync` in the checkout" in said


def test_a_module_is_missing(tmp_path):
    # Of openpi itself, as in a checkout of another time.
    fork = make_checkout(tmp_path / "fork", config="import openpi.models.pi0_config\n")
    said = refused("check", "cups", "--openpi", fork, cwd=tmp_path)
    assert f"openpi at {fork}/src/openpi" in said
    assert "'openpi.models'" in said or "has no module openpi.models" in said


def test_another_version(tmp_path):
    fork = make_checkout(tmp_path / "fork", config="CONFIGS = {}\n")
    said = refused("check", "cups", "--openpi", fork, cwd=tmp_path)
    assert f"openpi.training.config ({fork}/src/openpi/training/config.py) has no '_CONFIGS_DICT'" in said
    assert install.KNOWN in said


def test_a_config_module_that_raises_shows_the_users_line(tmp_path):
    broken = CONFIG + '\n_CONFIGS_DICT["mine"] = TrainConfig("mine", bach_size=4)\n'
    fork = make_checkout(tmp_path / "fork", config=broken)
    said = refused("check", "mine", "--openpi", fork, cwd=tmp_path)
    assert "openpi raises when openpi.training.config is imported: TypeError: " in said
    assert "unexpected keyword argument 'bach_size'" in said
    line = len(broken.splitlines())
    assert f'at {fork}/src/openpi/training/config.py:{line}: _CONFIGS_DICT["mine"]' in said
    assert str(ROOT / "preflight") not in said


def test_a_config_module_that_is_no_python_shows_the_users_line(tmp_path):
    fork = make_checkout(tmp_path / "fork", config="x = 1\ny = (\n")
    said = refused("check", "mine", "--openpi", fork, cwd=tmp_path)
    assert "SyntaxError: " in said
    assert f"at {fork}/src/openpi/training/config.py:2 " in said
    assert str(ROOT / "preflight") not in said


def test_an_unknown_name_names_the_near_ones_of_both_stacks(tmp_path):
    fork = make_checkout(tmp_path / "fork")
    for word, near in (("cupz", "cups"), ("pi0_lighter_cup_trosen", "pi0_lighter_cup_trossen")):
        said = refused("check", word, cwd=tmp_path, installed=fork)
        assert f"unknown config {word!r}; did you mean {near!r}?" in said
        assert all(name in said for name in ("cups", *BUILTIN_CONFIGS))
        assert "the path of a TOML run file" in said
    said = refused("check", "pi0_lighter_cup_trossen", "--stack", "openpi", cwd=tmp_path, installed=fork)
    assert "unknown openpi config 'pi0_lighter_cup_trossen'" in said


def test_which_stack_a_name_means(tmp_path):
    code = f"""
import json
from preflight.runs import load_run
names = ["cups", "pi0_lighter_cup_test", "pi0_lighter_cup_trossen", "pi0_lighter_cup_demo", {EXAMPLE!r}]
found = {{name: [load_run(name).facts.stack, load_run(name).facts.batch_size] for name in names}}
found["native"] = load_run("pi0_lighter_cup_test", stack="native").facts.batch_size
print(json.dumps(found))
"""
    found = python(code, cwd=tmp_path, installed=make_checkout(tmp_path / "fork"))
    assert found["cups"] == ["openpi", 7]
    assert found["pi0_lighter_cup_test"] == ["openpi", 7]  # known to both: the user's own is meant
    assert found["native"] == BUILTIN_CONFIGS["pi0_lighter_cup_test"].batch_size != 7
    for name in ("pi0_lighter_cup_trossen", "pi0_lighter_cup_demo", EXAMPLE):
        assert found[name][0] == "native"


def test_what_is_ours_without_question_does_not_import_openpi(tmp_path):
    fork = make_checkout(tmp_path / "fork", config="raise RuntimeError('imported')\n")
    done = preflight("check", EXAMPLE, "--only", "config.batch", cwd=tmp_path, installed=fork)
    assert done.returncode == 0, done.stderr


def test_openpis_configs_are_listed(tmp_path):
    done = preflight("list-configs", "--openpi", make_checkout(tmp_path / "fork"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"openpi ({tmp_path}/fork/src/openpi):" in done.stdout
    assert re.search(r"cups +batch 7, 2 workers, 30 steps, gemma_2b, data lab/cups", done.stdout)
    assert "native:" in done.stdout


def test_a_checkouts_path_goes_to_the_workers_too(tmp_path):
    data = """
import numpy as np

import openpi


class Samples:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"path": np.frombuffer(openpi.__file__.encode(), dtype=np.uint8).copy()}
"""
    fork = make_checkout(tmp_path / "fork", **{"training.data_loader": data})
    other = make_checkout(tmp_path / "installed", **{"training.data_loader": data})
    code = f"""
import json, pathlib
from preflight.runs.openpi.install import use_checkout
use_checkout(pathlib.Path({str(fork)!r}))
from preflight.data.loader import BatchLoader
from openpi.training.data_loader import Samples
with BatchLoader(Samples(), batch_size=2, num_workers=1) as loader:
    print(json.dumps(bytes(next(loader)["path"][0]).decode()))
"""
    assert python(code, cwd=tmp_path, installed=other) == str(fork / "src" / "openpi" / "__init__.py")


def test_a_checkout_stands_in_front_once(tmp_path, monkeypatch):
    fork = make_checkout(tmp_path / "fork")
    (fork / "packages" / "openpi-client" / "src").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    before = list(sys.path)
    for _ in range(2):
        install.use_checkout(fork)
        ours = [str(fork / "src"), str(fork / "packages" / "openpi-client" / "src")]
        assert sys.path == [*ours, *before]
        assert os.environ["PYTHONPATH"].split(os.pathsep) == [*ours, "/elsewhere"]


@pytest.mark.parametrize("start", ["a script of our own", "a checkout"])
def test_a_script_is_imported_once_and_leaves_nothing_when_it_raises(tmp_path, start):
    script = tmp_path / f"train_{start.replace(' ', '_')}.py"
    script.write_text("import dataclasses\n\n@dataclasses.dataclass\nclass A:\n    x: 'int' = 1\n\nloaded = A()\n")
    module = install.import_script(script)
    assert install.import_script(script) is module
    assert module.__name__ != "__main__"
    broken = tmp_path / f"broken_{script.name}"
    broken.write_text("raise KeyError('x')\n")
    known = set(sys.modules)
    with pytest.raises(KeyError):
        install.import_script(broken)
    assert set(sys.modules) == known
