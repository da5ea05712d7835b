"""`preflight cache`, and the commands that make the cache at their start."""

import json
import shutil
import signal

import pytest
from command import EXAMPLE, ROOT, TINY, interrupt_when, preflight
from recoded import CAMERA, V21, small_copy

from preflight.data.frame_store import FRAMES, stored_in

FRAME = 224 * 224 * 3


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run on small videos, and its dataset."""
    folder = tmp_path_factory.mktemp("small")
    small_copy(V21, folder / "g1")
    slots = f'[data.cameras]\nbase_0_rgb = "{CAMERA}"\n'
    (folder / "run.toml").write_text(f'[data]\nroot = "g1"\ncache_dir = "kept"\n{slots}')
    return folder


@pytest.fixture
def run_file(small, tmp_path):
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    return str(tmp_path / "run.toml")


def test_made_listed_verified_and_deleted(run_file, tmp_path):
    kept = tmp_path / "kept"
    done = preflight("cache", run_file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"making the frame cache of {CAMERA} in {kept}: 498 frames a camera, 71 MiB (" in done.stderr
    (stored,) = stored_in(kept)
    assert done.stdout == f"{CAMERA}: 71 MiB in {stored.folder}\nRead by runs with --set data.cache=disk.\n"

    done = preflight("cache", run_file, "--list", cwd=tmp_path)
    assert done.stdout.startswith(f"{CAMERA}: ready, 71 MiB in {stored.folder}\n\n{kept}: 1 cache, 71 MiB\n")
    assert f"{tmp_path / 'g1'}: {CAMERA}, swscale, 498 frames, of this run" in done.stdout
    done = preflight("cache", run_file, "--verify", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{CAMERA}: every frame has its checksum\n")

    with (stored.folder / FRAMES).open("r+b") as file:
        file.seek(123 * FRAME)
        file.write(b"\1" * 9)
    done = preflight("cache", run_file, "--verify", cwd=tmp_path)
    assert done.returncode == 3
    assert f"{CAMERA}: damaged: {stored.folder / FRAMES}: frame 123 does not have its checksum" in done.stdout

    done = preflight("cache", run_file, "--delete", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"removed {stored.folder} (71 MiB)\n")
    assert list(kept.iterdir()) == []
    assert "nothing of this run's cameras" in preflight("cache", run_file, "--delete", cwd=tmp_path).stdout
    assert f"{CAMERA}: absent\n" in preflight("cache", run_file, "--verify", cwd=tmp_path).stdout


def test_by_default_it_lies_in_preflights_own_cache_folder(tmp_path):
    done = preflight("cache", EXAMPLE, "--list", cwd=tmp_path, PREFLIGHT_CACHE=str(tmp_path / "pf"))
    assert f"absent, 71 MiB in {tmp_path / 'pf' / 'frames'}/g1--{CAMERA}--swscale-" in done.stdout
    assert not (tmp_path / "pf").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--list", "--delete"], 2, "--list, --verify and --delete are asked for together"),
        (["--set", "data.cameras={}"], 2, "the run uses no camera: there are no frames to keep"),
        (["--set", "data.cache_dir=run.toml"], 3, "run.toml"),
        (["--set", "data.cache_dir=/proc/none"], 3, "/proc/none"),
        (["--set", "data.root=nowhere"], 3, "nowhere"),
        (["--set", "data.cache=ram"], 2, "data.cache"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(run_file, tmp_path, words, code, said):
    before = sorted(tmp_path.rglob("*"))
    done = preflight("cache", run_file, *words, cwd=tmp_path)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_may_not_grow_so_large_is_a_sentence_too(run_file, tmp_path):
    """`ulimit -f`: the first write beyond it fails as on a full disk, inside a worker."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, limit[1]))
    try:
        done = preflight("cache", run_file, cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert done.returncode == 3
    assert "a file grew larger than is allowed here" in done.stderr
    assert not (tmp_path / "kept").exists()


def test_interrupted_it_keeps_what_there_is_and_goes_on(run_file, tmp_path):
    with_large = ["--set", f"data.root={ROOT / 'examples/data/g1'}"]
    code, output = interrupt_when(["cache", run_file, *with_large], cwd=tmp_path, sign="making the frame cache")
    assert code == 130, output
    assert "Traceback" not in output
    assert not any(one.whole for one in stored_in(tmp_path / "kept"))
    done = preflight("cache", run_file, *with_large, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [one.whole for one in stored_in(tmp_path / "kept")] == [True]


def test_terminated_it_goes_on_too(run_file, tmp_path):
    with_large = ["--set", f"data.root={ROOT / 'examples/data/g1'}"]
    words = ["cache", run_file, *with_large]
    interrupt_when(words, cwd=tmp_path, sign="making the frame cache", number=signal.SIGKILL)
    done = preflight(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_training_makes_it_first_resumes_without_it_and_reads_the_same(run_file, tmp_path):
    """The cache is no part of a run's identity: batches, losses and checkpoints are those of a run without it."""
    words = [*TINY, "--set", "num_workers=1", "--set", "wandb_enabled=false", "--set", "log_interval=1"]
    words += ["--set", f"checkpoint_base_dir={tmp_path / 'out'}", "--set", "lr_schedule.warmup_steps=1"]

    def fly(name, *more, steps):
        settings = [*words, "--set", f"num_train_steps={steps}"]
        done = preflight("train", run_file, "--exp-name", name, *settings, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    plain = fly("plain", steps=4)
    assert "frame cache" not in plain.stderr
    made = fly("kept", "--set", "data.cache=disk", steps=2)
    assert f"making the frame cache of {CAMERA}" in made.stderr
    again = fly("kept", "--resume", "--set", "data.cache=memory", steps=4)
    assert "frame cache" not in again.stderr
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / "out/run" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "kept")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_the_loaders_benchmark_makes_it_and_tells_reading_from_decoding(run_file, tmp_path):
    words = ["bench-loader", run_file, "--workers", "1", "--max-seconds", "0.5", "--set", "batch_size=4"]
    words += ["--set", f"data.root={ROOT / 'examples/data/g1'}"]
    done = preflight(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "making the frame cache" not in done.stderr
    text = " ".join(done.stdout.split())
    assert "Keep decoded frames: data.cache=disk (71 MiB for 1 camera, " in text
    assert "ms of CPU time of a sample, and is done once." in text
    kept = preflight(*words, "--set", "data.cache=disk", "--format", "json", cwd=tmp_path)
    assert "making the frame cache" in kept.stderr
    stages = [stage["name"] for stage in json.loads(kept.stdout)["attribution"]["stages"]]
    assert stages == ["read", "transform", "collate", "transfer"]
    assert not any("Keep decoded" in line for line in json.loads(kept.stdout)["attribution"]["advice"])
