"""Where a dataset is looked for, and what is said of one that lies elsewhere."""

import os
import pickle
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hub_layout import HASH, cached

from preflight.config.schema import DataConfig
from preflight.data.hub import hf_command
from preflight.data.hub_cache import snapshots
from preflight.data.locate import NotHereError, how_found, lerobots_root, resolve_root
from preflight.errors import DataError, UsageError

V30 = Path(__file__).parent.parent / "examples" / "data" / "g1"
V21 = Path(__file__).parent / "data" / "g1_v21"
OTHER = HASH[::-1]
DOWNLOAD = shlex.join(hf_command("download"))


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A user's home, with a space and a letter beyond ASCII, and an empty folder that commands are typed in."""
    for name in ("HF_LEROBOT_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "Jörg's home"
    (folder / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder / "work")
    return folder


@pytest.fixture
def hub(home):
    return home / ".cache" / "huggingface" / "hub"


@pytest.fixture
def lerobot_home(home):
    return home / ".cache" / "huggingface" / "lerobot"


def native(repo_id):
    return resolve_root(DataConfig(repo_id=repo_id))


def refused(find, repo_id):
    with pytest.raises(NotHereError) as caught:
        find(repo_id)
    return caught.value


def run(commands, home):
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
    for command in commands:
        subprocess.run(["bash", "-c", command], check=True, env=environ, capture_output=True)


def test_a_folder_comes_before_a_name(home):
    assert resolve_root(DataConfig(root=V30, repo_id="a/b")) == V30
    assert resolve_root(DataConfig(root=Path("~/data sets/g1"))) == home / "data sets" / "g1"
    with pytest.raises(DataError, match="^~nobody-of-this-name/g1: there is no home directory of that name$"):
        resolve_root(DataConfig(root=Path("~nobody-of-this-name/g1")))
    with pytest.raises(UsageError, match="names no dataset"):
        resolve_root(DataConfig())


@pytest.mark.parametrize("find", [native, lerobots_root])
def test_lerobots_home_follows_its_variables(find, home, lerobot_home, monkeypatch, tmp_path):
    shutil.copytree(V21, lerobot_home / "lab" / "g1")
    assert find("lab/g1") == lerobot_home / "lab" / "g1"
    for name, value, below in (
        ("XDG_CACHE_HOME", tmp_path / "xdg", "huggingface/lerobot"),
        ("HF_HOME", tmp_path / "hf", "lerobot"),
        ("HF_LEROBOT_HOME", tmp_path / "own", ""),
    ):
        monkeypatch.setenv(name, str(value))
        shutil.copytree(V21, value / below / "lab" / "g1")
        assert find("lab/g1") == value / below / "lab" / "g1"
        assert how_found(find("lab/g1")) == "in LeRobot's home"
    assert how_found(V21) is None


@pytest.mark.parametrize("find", [native, lerobots_root])
def test_what_is_nowhere_comes_with_the_command_that_fetches_it(find, lerobot_home):
    error = refused(find, "lab/g1")
    assert error.message == f"lab/g1 is not downloaded: {lerobot_home}/lab/g1 does not exist"
    place = shlex.quote(f"{lerobot_home}/lab/g1")
    assert error.hint.startswith(f"Download it: {DOWNLOAD} lab/g1 --repo-type dataset --local-dir {place} ")
    # What LeRobot leaves when the Hub has nothing either.
    (lerobot_home / "lab" / "g1" / "meta").mkdir(parents=True)
    error = refused(find, "lab/g1")
    assert error.message == f"lab/g1 is not downloaded: {lerobot_home}/lab/g1 is empty"
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, again.hint, again.absent) == (error.message, error.hint, error.absent)
    assert refused(find, "x" * 300).message.startswith("xxx")  # too long for a folder's name


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, ".cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "$HOME/xdg"}, "xdg/huggingface/hub"),
        ({"HF_HOME": "~/hf"}, "hf/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "~/legacy"}, "legacy"),
        ({"HUGGINGFACE_HUB_CACHE": "~/legacy", "HF_HUB_CACHE": "~/new"}, "new"),
        ({"HF_LEROBOT_HOME": "~/robots"}, "robots/hub"),  # LeRobot's own since 0.5
    ],
)
def test_the_native_reader_takes_a_complete_snapshot_from_the_hubs_cache(variables, place, home, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("$HOME", str(home)))
    root = cached(home / place, "lab/g1", V21, names=("main", "v2.1"))
    assert native("lab/g1") == root
    assert how_found(root) == "in the Hub's cache, snapshot 0123456 of main and v2.1"


def test_of_several_snapshots_the_complete_and_the_named_come_first(hub):
    first = cached(hub, "lab/g1", V30, names=("v3.0",), commit="a" * 40)
    cached(hub, "lab/g1", V21, names=("main",), commit="b" * 40, only="meta/")
    cached(hub, "lab/g1", V21, names=(), commit="c" * 40)
    cached(hub, "lab/g1", V21, names=("refs/pr/1",), commit="d" * 40)
    assert [(s.root.name[0], s.lacks) for s in snapshots("lab/g1")] == [
        ("a", None),
        ("d", None),
        ("c", None),
        ("b", "0 of 2 parquet files"),
    ]
    assert native("lab/g1") == first
    main = cached(hub, "lab/g1", V21, names=("main",), commit="e" * 40)
    assert native("lab/g1") == main
    assert [str(s) for s in snapshots("lab/g1")][-2:] == ["snapshot ccccccc", "snapshot bbbbbbb"]


def test_lerobots_home_comes_before_the_hubs_cache(hub, lerobot_home):
    cached(hub, "lab/g1", V21)
    shutil.copytree(V21 / "meta", lerobot_home / "lab" / "g1" / "meta")
    assert native("lab/g1") == lerobot_home / "lab" / "g1"
    shutil.rmtree(lerobot_home / "lab" / "g1" / "meta")
    (lerobot_home / "lab" / "g1" / "meta").mkdir()
    assert native("lab/g1").parent.name == "snapshots"


@pytest.mark.parametrize(
    ("source", "only", "lacks"),
    [
        (V21, "data/", "no meta/info.json"),
        (V21, "meta/", "0 of 2 parquet files"),
        (V30, "meta/", "0 parquet files of at least 1"),
        (V21, ("meta/", "data/"), "0 of 2 videos"),
        (V30, ("meta/", "data/"), "0 videos of at least 1"),
    ],
)
def test_a_part_of_a_snapshot_is_none(source, only, lacks, hub, lerobot_home):
    cached(hub, "lab/g1", source, only=only)
    error = refused(native, "lab/g1")
    assert error.message == f"lab/g1 is not downloaded whole: snapshot 0123456 of main in the Hub's cache has {lacks}"
    assert error.hint == f"Download the rest: {DOWNLOAD} lab/g1 --repo-type dataset --revision main"
    # LeRobot's own readers up to 0.4 have no use for the rest of it there.
    assert f"--local-dir {shlex.quote(str(lerobot_home / 'lab' / 'g1'))}" in refused(lerobots_root, "lab/g1").hint


def test_a_damaged_snapshot_is_left_to_whoever_reads_it(hub):
    root = cached(hub, "lab/g1", V21)
    (root / "meta" / "info.json").unlink()
    (root / "meta" / "info.json").symlink_to("../../../blobs/none")
    refused(native, "lab/g1")  # its link leads nowhere: it is not there
    (root / "meta" / "info.json").unlink()
    (root / "meta" / "info.json").write_text('{"codebase_version": "v1.6"}')
    assert native("lab/g1") == root


@pytest.mark.parametrize("left", [False, True])
def test_lerobots_reader_is_shown_what_lies_in_the_hubs_cache(left, home, hub, lerobot_home):
    root = cached(hub, "lab/g1", V21)
    if left:
        (lerobot_home / "lab" / "g1" / "meta").mkdir(parents=True)
    error = refused(lerobots_root, "lab/g1")
    assert error.message == (
        f"lab/g1 is not at {lerobot_home}/lab/g1, where LeRobot's reader looks for it, but in the Hub's cache, "
        f"snapshot 0123456 of main: {root}"
    )
    assert error.absent.found == root
    assert error.absent.commands[-1].startswith("ln -s ")
    assert " && ln -s " in error.hint
    run([" && ".join(error.absent.commands)], home)
    assert lerobots_root("lab/g1") == lerobot_home / "lab" / "g1"
    assert (lerobots_root("lab/g1") / "meta" / "info.json").samefile(root / "meta" / "info.json")
    assert how_found(lerobots_root("lab/g1")) == (
        "in LeRobot's home, a link into the Hub's cache, snapshot 0123456 of main"
    )


def test_lerobots_reader_is_shown_what_lies_in_the_working_directory(home, lerobot_home):
    for place in (home / "work" / "g1", home / "work" / "data" / "g1", home / "work" / "lab" / "g1"):
        shutil.copytree(V21, place)
        error = refused(lerobots_root, "lab/g1")
        assert f"but elsewhere: {place}" in error.message
        run([" && ".join(error.absent.commands)], home)
        assert lerobots_root("lab/g1").samefile(place)
        assert how_found(lerobots_root("lab/g1")) == f"in LeRobot's home, a link to {place}"
        (lerobot_home / "lab" / "g1").unlink()
        error = refused(native, "lab/g1")
        assert error.message.endswith(f"does not exist; a dataset of that name is at {place}")
        assert f"--set data.root={shlex.quote(str(place))}" in error.hint
        shutil.rmtree(place)


def test_a_variable_that_hides_the_usual_home_is_named(home, lerobot_home, monkeypatch, tmp_path):
    shutil.copytree(V21, lerobot_home / "lab" / "g1")
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "other"))
    error = refused(lerobots_root, "lab/g1")
    assert error.absent.commands == (f"export HF_LEROBOT_HOME={shlex.quote(str(lerobot_home))}",)


def test_a_path_in_the_place_of_a_name(home, lerobot_home):
    # LeRobot's reader joins it to its home, where an absolute path stands for itself.
    assert lerobots_root(str(V21)) == V21
    shutil.copytree(V21, home / "my data")
    for path in ("~/my data", "../my data", "./../my data"):
        error = refused(lerobots_root, path)
        assert not error.absent.on_hub
        run([" && ".join(error.absent.commands)], home)
        assert "name it by data.repo_id='local/my data'" in error.hint
        assert lerobots_root("local/my data").samefile(home / "my data")
        (lerobot_home / "local" / "my data").unlink()
    assert refused(lerobots_root, "/nowhere/g1").message == "/nowhere/g1 is not downloaded: /nowhere/g1 does not exist"
    assert refused(lerobots_root, "/nowhere/g1").hint == "Name it as user/name, below $HF_LEROBOT_HOME."
    for path in ("../x", "/data/g1", "~/my data", "./g1", "", "a/../b"):
        with pytest.raises(UsageError) as caught:
            native(path)
        assert caught.value.message == f"data.repo_id must look like user/name, got {path!r}"
        assert f"--set data.root={shlex.quote(path)}" in caught.value.hint


def test_a_file_in_the_dataset_s_place_is_left_to_whoever_reads_it(lerobot_home):
    (lerobot_home / "lab").mkdir(parents=True)
    (lerobot_home / "lab" / "g1").write_text("no folder")
    assert native("lab/g1") == lerobots_root("lab/g1") == lerobot_home / "lab" / "g1"
