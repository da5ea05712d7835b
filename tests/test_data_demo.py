import errno
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preflight.data import demo
from preflight.data.atomic import explain, folder_lock, written_whole
from preflight.data.demo_motion import ARM_BASE, CUP_HEIGHT, FPS, JOINT_NAMES, TASK, arm_frames, plan_episode, reach
from preflight.data.demo_scene import CAMERAS, cameras, draw_frames
from preflight.errors import EXIT_USAGE, PreflightError, UsageError

TINY = {"episodes": 2, "resolution": (96, 128), "frames_per_episode": 20}
# LeRobot 0.1.0 leaves each picture that it encodes to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <_io.FileIO name='.*/frame_\d+.png':pytest.PytestUnraisableExceptionWarning"
)
needs_lerobot = pytest.mark.usefixtures("lerobot")


@pytest.fixture(scope="module")
def tiny(lerobot, tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "tiny"
    seen = []
    demo.write_demo_dataset(root, **TINY, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 40) for k in range(1, 41)]
    return root


def columns(root: Path) -> dict[str, np.ndarray]:
    tables = [pq.read_table(path) for path in sorted(root.glob("data/**/*.parquet"))]
    return {
        name: np.concatenate([np.array(table[name].to_pylist()) for table in tables]) for name in tables[0].column_names
    }


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=200
    )


def test_lerobot_reads_it_back(lerobot, tiny, tmp_path):
    code = f"""
import errno
import json
from {lerobot}.lerobot_dataset import LeRobotDataset
dataset = LeRobotDataset({"preflight/lighter-cup-demo"!r}, root={str(tiny)!r}, video_backend="pyav")
meta = dataset.meta
row = dataset.hf_dataset[25]
print(json.dumps({{
    "fps": meta.fps, "episodes": meta.total_episodes, "frames": meta.total_frames, "cameras": meta.video_keys,
    "tasks": list(meta.tasks.values() if isinstance(meta.tasks, dict) else meta.tasks.index),
    "names": meta.features["action"]["names"], "length": len(dataset),
    "shape": meta.features["observation.images.cam_high"]["shape"], "state": row["observation.state"].tolist(),
    "at": [int(row["episode_index"]), int(row["frame_index"]), float(row["timestamp"])],
}}))
"""
    done = run(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen.pop("state") == plan_episode(1, 20).state[5].tolist()
    assert seen.pop("at") == pytest.approx([1, 5, 5 / FPS])
    assert seen == {
        "fps": 30,
        "episodes": 2,
        "frames": 40,
        "length": 40,
        "cameras": list(CAMERAS),
        "tasks": ["put the lighter in the cup"],
        "names": list(JOINT_NAMES),
        "shape": [96, 128, 3],
    }


def test_columns(tiny):
    data = columns(tiny)
    assert data["episode_index"].tolist() == [0] * 20 + [1] * 20
    assert data["timestamp"] == pytest.approx(np.tile(np.arange(20) / 30, 2), abs=1e-6)
    for name in ("observation.state", "action"):
        assert data[name].shape == (40, 14)
        assert (data[name].std(axis=0) > 1e-4).all(), f"{name} has a constant dimension"
    assert len(JOINT_NAMES) == 14
    assert JOINT_NAMES[6] == "left_gripper"
    assert JOINT_NAMES[7] == "right_waist"


def test_videos_show_what_was_drawn(tiny):
    for camera in CAMERAS:
        frames = []
        for path in sorted(tiny.glob(f"videos/**/{camera}/**/*.mp4")):
            with av.open(str(path)) as video:
                frames += [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        drawn = np.concatenate([draw_frames(plan_episode(k, 20), 0, 20, (96, 128))[camera] for k in (0, 1)])
        assert len(frames) == 40
        error = np.abs(np.stack(frames).astype(int) - drawn).mean(axis=(1, 2, 3))
        assert error.max() < 12  # of 255: the encoder smooths the grain away, at crf 30 on a small picture
        # A frame is nearer to its own drawing than to one a third of an episode away.
        assert error[3] < np.abs(frames[3].astype(int) - drawn[10]).mean()


def test_pixel_statistics_are_right(tiny):
    if not (tiny / "meta" / "stats.json").exists():
        pytest.skip("before format v3.0 LeRobot keeps statistics by episode, of some of the frames")
    # LeRobot 0.4.4 by itself overflows uint8 here: its standard deviations are off by a factor.
    stats = json.loads((tiny / "meta" / "stats.json").read_text())
    for camera in CAMERAS:
        drawn = np.concatenate([draw_frames(plan_episode(k, 20), 0, 20, (96, 128))[camera] for k in (0, 1)]) / 255
        assert np.ravel(stats[camera]["mean"]) == pytest.approx(drawn.mean(axis=(0, 1, 2)), abs=1e-6)
        assert np.ravel(stats[camera]["std"]) == pytest.approx(drawn.std(axis=(0, 1, 2)), abs=1e-6)
        assert np.ravel(stats[camera]["max"]) == pytest.approx(drawn.max(axis=(0, 1, 2)), abs=1e-6)


def test_same_arguments_give_the_same_columns(tiny, tmp_path):
    demo.write_demo_dataset(tmp_path / "again", **TINY)
    first, second = columns(tiny), columns(tmp_path / "again")
    assert first.keys() == second.keys()
    for name in first:
        assert np.array_equal(first[name], second[name]), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again"]


def test_same_seed_gives_the_same_pixels_in_any_stretch():
    whole = draw_frames(plan_episode(1, 20, seed=3), 0, 20, (48, 64))
    part = draw_frames(plan_episode(1, 20, seed=3), 7, 9, (48, 64))
    other = draw_frames(plan_episode(1, 20, seed=4), 7, 9, (48, 64))
    for camera in CAMERAS:
        assert whole[camera].dtype == np.uint8
        assert whole[camera].shape == (20, 48, 64, 3)
        assert np.array_equal(whole[camera][7:9], part[camera])
        assert not np.array_equal(part[camera], other[camera])


@pytest.mark.parametrize("index", range(6))
def test_the_lighter_goes_from_the_table_into_the_cup(index):
    episode = plan_episode(index, 90)
    active = 1 - index % 2
    tip = arm_frames(active, episode.joints[:, 7 * active : 7 * active + 7])["tip"][0]
    opening = episode.joints[:, 7 * active + 6]
    held = np.flatnonzero(np.linalg.norm(np.diff(episode.lighter, axis=0), axis=1) > 1e-4)
    assert episode.lighter[0, 2] < 0.01
    assert np.linalg.norm(tip - episode.lighter, axis=1)[held[0]] < 0.012
    assert opening[held[0]] < 0.25 < 0.6 < opening[0]
    assert episode.lighter[:, 2].max() > CUP_HEIGHT + 0.04
    assert np.hypot(*(episode.lighter[-1] - episode.cup)[:2]) < 0.02
    assert episode.lighter[-1, 2] < CUP_HEIGHT
    assert np.linalg.norm(tip[-1] - episode.lighter[-1]) > 0.1
    # The hand never dips below the table and the joints move smoothly.
    assert tip[:, 2].min() > 0
    assert np.abs(np.diff(episode.joints, axis=0)).max() < 0.25
    assert np.allclose(np.swapaxes(episode.lighter_frame, 1, 2) @ episode.lighter_frame, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("index", [0, 1])
def test_actions_lead_states(index):
    episode = plan_episode(index, 90)
    assert (episode.action != episode.state).mean() > 0.99
    # The action is where the joints go next, not where they are: it explains the next state better.
    moving = np.abs(np.diff(episode.state, axis=0)) > 0.01
    here = np.abs(episode.action[:-1] - episode.state[:-1])[moving].mean()
    ahead = np.abs(episode.action[:-1] - episode.state[1:])[moving].mean()
    assert ahead < 0.6 * here
    for values in (episode.state, episode.action):
        assert values.dtype == np.float32
        assert values[:, [6, 13]].min() >= 0
        assert values[:, [6, 13]].max() <= 1


@given(st.sampled_from([0, 1]), st.floats(0.3, 0.5), st.floats(-0.2, 0.2), st.floats(0.0, 0.2), st.floats(0.5, 1.4))
def test_reach_and_forward_kinematics_agree(arm, out, y, z, pitch):
    target = np.array([ARM_BASE[arm][0] + (out if arm == 0 else -out), y, z])
    tip, frame = arm_frames(arm, reach(arm, target, pitch)[None])["tip"]
    assert tip[0] == pytest.approx(target, abs=1e-9)
    assert -frame[0, 2, 0] == pytest.approx(np.sin(pitch))


@pytest.mark.parametrize("camera", range(3))
def test_the_lighter_is_drawn_where_it_is(camera):
    episode = plan_episode(0, 90)
    frame = 38  # the right hand is about to close on it
    resolution = (120, 160)
    away = replace(episode, lighter=episode.lighter + np.array([0, 0, 100.0]))
    with_it = draw_frames(episode, frame, frame + 1, resolution)[CAMERAS[camera]][0].astype(int)
    without = draw_frames(away, frame, frame + 1, resolution)[CAMERAS[camera]][0].astype(int)
    changed = np.argwhere(np.abs(with_it - without).sum(axis=-1) > 60)
    view = cameras(episode, frame, frame + 1, resolution)[camera]
    x, y, depth = view.axes[0] @ (episode.lighter[frame] - view.at[0])
    expected = np.array([60 + view.focal * y / depth, 80 + view.focal * x / depth])
    size = view.focal * 0.08 / depth
    if camera == 1:  # the left wrist looks at the cup; the lighter may be out of its sight
        assert ((expected < 0) | (expected > resolution)).any() == (len(changed) == 0)
    else:
        assert len(changed) > 10
        assert np.abs(changed.mean(axis=0) - expected).max() < size / 2


def test_an_occupied_folder_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match="mine already exists and is not an empty folder") as caught:
        demo.write_demo_dataset(tmp_path / "mine", **TINY)
    assert caught.value.exit_code == EXIT_USAGE
    assert "another folder" in caught.value.hint
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"episodes": 0}, "at least 1 episode, not 0"),
        ({"frames_per_episode": 5}, "at least 10 frames, not 5"),
        ({"resolution": (97, 128)}, "cannot be drawn at 97x128"),
        ({"resolution": (16, 16)}, "cannot be drawn at 16x16"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, wrong, message):
    with pytest.raises(UsageError, match=message):
        demo.write_demo_dataset(tmp_path / "new", **{**TINY, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_a_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="cannot be written: a part of the path is a file"):
        demo.write_demo_dataset(tmp_path / "file" / "data", **TINY)


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(PreflightError, match=r"needs about \d+ MiB, and its disk has \d+ MiB left"):
        demo.write_demo_dataset(tmp_path / "huge", episodes=10**9)
    assert list(tmp_path.iterdir()) == []


@needs_lerobot
@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), ZeroDivisionError()])
def test_an_interrupted_write_leaves_nothing(tmp_path, interruption):
    before = threading.enumerate()

    def interrupt(done, total):
        if done == 30:
            raise interruption

    with pytest.raises(type(interruption)):
        demo.write_demo_dataset(tmp_path / "data", **TINY, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    # tqdm keeps a thread of its own for all progress bars of a process, from the first that runs for long.
    started = [thread.name for thread in threading.enumerate() if thread not in before]
    left = [name for name in started if name != "tqdm_monitor"]
    assert left == []


@needs_lerobot
def test_a_killed_write_is_no_dataset_and_is_cleaned_up(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from preflight.data.demo import write_demo_dataset
def kill(done, total):
    if done == 30: os.kill(os.getpid(), signal.SIGKILL)
output = Path({str(tmp_path)!r}) / "data"
write_demo_dataset(output, episodes=2, resolution=(96, 128), frames_per_episode=20, progress=kill)
"""
    assert run(code).returncode == -9
    left = [path.name for path in tmp_path.iterdir()]
    assert any(name.startswith(".data.partial-") for name in left)
    assert "data" not in left
    demo.write_demo_dataset(tmp_path / "data", **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert len(columns(tmp_path / "data")["index"]) == 40


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Encoder thread for cam failed: [Errno 28] No space left on device: '/x.mp4'"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
    ],
)
def test_a_full_disk_is_named_whoever_met_it(error):
    said = explain(error, Path("/data/demo"))
    assert said.message == "The disk filled up while /data/demo was written."
    assert said.hint == "Free some space, or choose a folder on another disk."


def test_other_troubles_are_named():
    assert explain(PermissionError(errno.EACCES, "x"), Path("/d")).message == "/d cannot be written: Permission denied."
    assert explain(OSError(errno.EROFS, "x"), Path("/d")).message == "/d cannot be written: Read-only file system."
    assert explain(RuntimeError("odd"), Path("/d")).message == "/d could not be written: odd."


def test_an_encoder_that_cannot_write_stops_the_write(lerobot, tmp_path):
    # A limit on the size of files stops it in the middle of a video, as a full disk does.
    code = f"""
import resource
from pathlib import Path
from preflight.data import demo
from preflight.errors import PreflightError
import {lerobot}.lerobot_dataset
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    demo.write_demo_dataset(Path({str(tmp_path)!r}) / "data", episodes=2, resolution=(96, 128), frames_per_episode=20)
except PreflightError as error:
    print("SAID", error.message)
"""
    done = run(code)
    said = f"SAID {tmp_path}/data cannot be written: a file grew larger than is allowed here.\n"
    if lerobot == "lerobot.common.datasets":
        # It writes pictures first, prints each that it cannot write, and misses the first when it encodes them.
        missing = ".*/observation.images.cam_high/episode_000000/frame_000000.png"
        said = rf"(Error writing image .*\n)*SAID {tmp_path}/data could not be written: .*No such file.*{missing}'\.\n"
    else:
        said = re.escape(said)
    assert re.fullmatch(said, done.stdout), done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_lerobot
def test_two_processes_at_once_make_one_and_say_nothing(tmp_path):
    code = """
from preflight.data import demo
demo.DEFAULT_EPISODES, demo.DEFAULT_FRAMES, demo.DEFAULT_RESOLUTION = 2, 10, (96, 128)
calls = []
print(demo.ensure_demo_dataset(lambda done, total: calls.append(done)), len(calls))
"""
    environment = {**os.environ, "PREFLIGHT_CACHE": str(tmp_path), "HOME": str(tmp_path / "home")}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=200) for process in both]
    assert [stderr for _, stderr in said] == ["", ""]
    folders, counts = zip(*(stdout.split() for stdout, _ in said), strict=True)
    assert sorted(counts) == ["0", "20"]
    assert folders[0] == folders[1]
    assert [str(path) for path in (tmp_path / "demo").iterdir()] == [folders[0]]
    # Nothing in the home folder: no Hugging Face cache, no logs.
    assert not (tmp_path / "home").exists()


def test_the_lock_lets_one_in(tmp_path):
    order = []

    def second():
        with folder_lock(tmp_path / "x") as locked:
            order.append(("second", locked))

    with folder_lock(tmp_path / "x") as locked:
        assert locked
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        assert order == []
        order.append(("first", locked))
    thread.join(10)
    assert order == [("first", True), ("second", True)]
    assert list(tmp_path.iterdir()) == []


def test_without_a_lock_another_process_is_left_alone(tmp_path):
    (tmp_path / ".x.partial-other").mkdir()
    with written_whole(tmp_path / "x", locked=False) as partial:
        partial.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.partial-other", "x"]
    with written_whole(tmp_path / "y", locked=True) as partial:
        partial.mkdir()
    with written_whole(tmp_path / "x", locked=True) as partial:
        partial.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFLIGHT_CACHE", str(tmp_path / "own"))
    assert demo.demo_dataset_root().parent == tmp_path / "own" / "demo"
    assert demo.demo_dataset_root().name.startswith("lighter-cup-")
    monkeypatch.delenv("PREFLIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert demo.cache_root() == tmp_path / "xdg" / "preflight"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo.cache_root() == tmp_path / ".cache" / "preflight"


def test_imports_and_a_finished_dataset_need_no_lerobot(tiny, tmp_path):
    code = """
import sys
from preflight.data import demo
print(demo.ensure_demo_dataset(), [m for m in ("jax", "torch", "lerobot") if m in sys.modules])
"""
    where = run("from preflight.data import demo; print(demo.demo_dataset_root())", PREFLIGHT_CACHE=str(tmp_path))
    root = Path(where.stdout.strip())
    root.parent.mkdir(parents=True)
    root.symlink_to(tiny)
    assert run(code, PREFLIGHT_CACHE=str(tmp_path)).stdout.strip() == f"{root} []"


def test_the_task_is_what_the_configs_are_called_after():
    assert TASK == "put the lighter in the cup"
