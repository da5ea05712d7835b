"""`data.videos`: silent on real data, and alone with a video that does not hold its episodes' frames."""

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from healthy import context, spoken
from PIL import Image
from recoded import (
    CAMERA,
    V21,
    V30,
    edit_info,
    encode,
    in_milliframes,
    pictures,
    small_copy,
    v21_video,
    v30_video,
)

from checks import data, data_videos
from preflight.checklist import run_checks
from preflight.data.demo import ensure_demo_dataset

# data.sample decodes too; it comes after this one.
CHECKS = (*(check for check in data.CHECKS if check.id not in ("data.sample", "data.videos")), data_videos.CHECK)


def run_data(root, level="standard"):
    checked = context(f"data.root={root}", level=level)
    return {result.check.id: result for result in run_checks(CHECKS, checked, max_parallel=1)}


def the_one_that_speaks(root, status="fail", level="standard"):
    results = run_data(root, level)
    assert spoken(results) == {"data.videos"}, {i: results[i].outcome.summary for i in spoken(results)}
    assert results["data.videos"].status == status
    return results["data.videos"].outcome


def alone(checked):
    """What this check says, run by itself on a dataset that the others have let pass."""
    return run_checks([dataclasses.replace(data_videos.CHECK, requires=())], checked)[0].outcome


@pytest.fixture(scope="module")
def small_v21(tmp_path_factory):
    return small_copy(V21, tmp_path_factory.mktemp("v21") / "g1")


@pytest.fixture(scope="module")
def small_v30(tmp_path_factory):
    return small_copy(V30, tmp_path_factory.mktemp("v30") / "g1")


@pytest.fixture
def v21(small_v21, tmp_path):
    return shutil.copytree(small_v21, tmp_path / "g1")


@pytest.fixture
def v30(small_v30, tmp_path):
    return shutil.copytree(small_v30, tmp_path / "g1")


@pytest.mark.parametrize("root", [V21, V30])
@pytest.mark.parametrize("level", ["standard", "full"])
def test_real_data_are_silent(root, level):
    results = run_data(root, level)
    assert spoken(results) == set()
    outcome, videos = results["data.videos"].outcome, 2 if root == V21 else 1
    compared = ", 498 of 498 frames decoded in sequence, the time of every frame compared" if level == "full" else ""
    assert re.fullmatch(
        rf"{videos} of {videos} videos opened \(av1 480x640\){compared}, first, middle and last frame of 2 of 2 "
        r"episodes decoded; a frame costs [\d.]+ ms at random, [\d.]+ ms in sequence",
        outcome.summary,
    )
    assert outcome.measured["key_frame_distance"] == {CAMERA: 2}
    assert outcome.measured["every_frames_time_compared"] is (level == "full")


@pytest.mark.usefixtures("lerobot")
def test_the_demo_dataset_is_silent():
    assignments = (f"data.root={ensure_demo_dataset()}", "data.cameras={}")
    assert alone(context(*assignments)).summary == "no video is read: the run uses no camera"
    checked = context(*assignments, level="full")
    checked.run.facts = dataclasses.replace(checked.run.facts, decodes_all_cameras=True)
    outcome = alone(checked)
    assert outcome.status == "pass"
    opened = r"(\d+) of \1 videos opened \((?:h264|av1) 240x320\), ([\d,]+) of \2 frames decoded in sequence, "
    assert re.match(opened, outcome.summary)
    assert " last frame of 12 of 12 episodes decoded;" in outcome.summary


def test_without_videos_it_says_so():
    checked = context()
    checked.run.source = lambda: None
    assert alone(checked).summary == "samples are made up without a dataset: it has no videos"


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="png")
    return buffer.getvalue()


GOOD = png(np.full((6, 8, 3), 9, np.uint8))


def with_pictures(root, change=None):
    """A wrist camera in the parquet file; `change` is what rows hold instead; row 221 begins episode 1."""
    wrist = {"dtype": "image", "shape": [6, 8, 3], "names": ["height", "width", "channel"]}
    edit_info(root, lambda info: info["features"].update({"wrist": wrist}))
    (path,) = (root / "data").rglob("*.parquet")
    contents = [GOOD] * 498
    for row, content in (change or {}).items():
        contents[row] = content
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    column = pa.array([{"bytes": content, "path": None} for content in contents], kind)
    table = pq.read_table(path)
    pq.write_table(table.append_column("wrist", column), path, row_group_size=100)
    return path


def of_wrist(root, level="standard", *, alone_too=False):
    checked = context(f"data.root={root}", "data.cameras.left_wrist_0_rgb=wrist", level=level)
    if alone_too:
        checked.run.cameras = lambda: ("wrist",)
    return alone(checked)


@pytest.mark.parametrize(("level", "pictures_seen"), [("standard", 6), ("full", 498)])
def test_sound_pictures_in_parquet_files_are_silent(v30, level, pictures_seen):
    with_pictures(v30)
    said = f"{pictures_seen} pictures in the parquet files decoded, of 2 of 2 episodes of wrist"
    outcome = of_wrist(v30, level)
    assert (outcome.status, outcome.measured["pictures"]) == ("pass", pictures_seen)
    assert outcome.summary.endswith(f"; {said}")
    assert of_wrist(v30, level, alone_too=True).summary == f"no video is read; {said}"


BAD_PICTURES = pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "column 'wrist' holds no picture"),
        (b"no picture", "the picture in 'wrist' cannot be decoded (cannot identify"),
        (GOOD[:40], "the picture in 'wrist' cannot be decoded ("),
        (
            png(np.zeros((6, 6, 3), np.uint8)),
            "the picture in 'wrist' has 6x6 pixels, info.json gives 6x8 (height x width)",
        ),
        (png(np.zeros((6, 8), np.uint8)), "the picture in 'wrist' has 1 channel(s), info.json gives 3"),
        (png(np.zeros((6, 8), np.uint16)), "the picture in 'wrist' has more than 8 bits a channel (mode I;16)"),
    ],
    ids=["none", "no picture", "cut off", "size", "channels", "depth"],
)


@BAD_PICTURES
def test_a_damaged_picture_in_a_parquet_file_trips_it(v30, content, said):
    path = with_pictures(v30, {221: content})
    for alone_too in (True, False):
        outcome = of_wrist(v30, alone_too=alone_too)
        assert outcome.status == "fail"
        assert outcome.summary.startswith(f"{path}, episode 1, frame 0: {said}"), outcome.summary


@BAD_PICTURES
def test_a_damaged_picture_in_the_middle_is_met_at_level_full(v30, content, said):
    path = with_pictures(v30, {300: content})
    assert of_wrist(v30).status == "pass"  # neither first, middle nor last
    assert of_wrist(v30, "full").summary.startswith(f"{path}, episode 1, frame 79: {said}")


def test_damaged_bytes_that_only_decoding_every_frame_meets_trip_it_alone(tmp_path):
    root = shutil.copytree(V21, tmp_path / "g1")
    path = v21_video(root, 1)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle - 30_000 : middle + 30_000] = bytes(60_000)
    path.write_bytes(content)
    assert spoken(run_data(root)) == set()
    told = []
    outcome = alone(context(f"data.root={root}", level="full", progress=lambda *words: told.append(words)))
    assert outcome.status == "fail"
    assert re.match(re.escape(f"{path}, episode 1, frame 1") + r"[23]\d: .*cannot be decoded at 4\.", outcome.summary)
    assert "damaged frame(s) of 1 episode(s)" in outcome.summary
    assert 480 < outcome.measured["frames_decoded"] < 498
    assert told[-1][0] == "frames decoded"


def test_a_video_that_ends_early_trips_it_alone(v21):
    encode(v21_video(v21, 1), pictures(1)[:270])
    outcome = the_one_that_speaks(v21)
    assert outcome.summary == (
        f"{v21_video(v21, 1)}, episode 1, frame 270: no frame within 0.0001 s of 9.0000 s, the nearest is at 8.9667 s "
        "(in all 7 frame(s) of 1 episode(s)); it has 270 frames, episode 1 has 277"
    )
    assert outcome.measured["broken"] == [str(v21_video(v21, 1))]
    assert str(v21_video(v21, 1)) in outcome.hint.commands[0]


def test_a_joined_video_that_ends_early_names_the_episode(v30):
    encode(v30_video(v30), [*pictures(0), *pictures(1)[:200]])
    outcome = the_one_that_speaks(v30)
    assert outcome.summary.startswith(f"{v30_video(v30)}, episode 1, frame 200: no frame within 0.0001 s of 14.0333 s")
    assert outcome.summary.endswith("it has 421 frames, its 2 episodes have 498")


def test_a_frame_that_was_dropped_trips_it_alone(v21):
    kept = [i for i in range(277) if i != 100]
    times = in_milliframes(pictures(1))
    encode(v21_video(v21, 1), [pictures(1)[i] for i in kept], times=[times[i] for i in kept])
    outcome = the_one_that_speaks(v21)
    assert ", episode 1, frame 100: no frame within 0.0001 s of 3.3333 s, the nearest is at 3.3000 s (in all 1 " in (
        outcome.summary
    )


@pytest.mark.parametrize("level", ["standard", "full"])
def test_times_off_the_grid_trip_it_alone(v21, level):
    encode(v21_video(v21, 0), pictures(0), times=[t + 300 for t in in_milliframes(pictures(0))])
    outcome = the_one_that_speaks(v21, level=level)
    assert ", episode 0, frame 0: no frame within 0.0001 s of 0.0000 s, the nearest is at 0.0100 s" in outcome.summary


def test_another_rate_trips_it_alone(v21):
    encode(v21_video(v21, 1), pictures(1), fps=25)
    outcome = the_one_that_speaks(v21)
    assert outcome.summary.endswith("; it plays at 25 fps, info.json says 30")


def test_more_frames_than_the_episode_are_a_warning(v21):
    encode(v21_video(v21, 0), [*pictures(0), *pictures(0)[:2]])
    outcome = the_one_that_speaks(v21, "warn")
    assert outcome.summary == (
        f"{v21_video(v21, 0)} has 223 frames, episode 0 has 221: the rest is never seen; 2 of 2 videos opened (mpeg4 "
        "48x64)"
    )


def test_another_size_trips_it_alone_and_a_turned_shape_warns(v21):
    encode(v21_video(v21, 1), [picture[:32] for picture in pictures(1)])
    outcome = the_one_that_speaks(v21)
    assert outcome.summary == (
        f"{v21_video(v21, 1)} shows 32x64 pixels, info.json gives {CAMERA} 48x64 (height x width)"
    )
    assert outcome.hint.text == "correct the shape in meta/info.json, or encode the video at that size"
    encode(v21_video(v21, 1), pictures(1))
    edit_info(v21, lambda info: info["features"][CAMERA].update(shape=[64, 48, 3]))
    outcome = the_one_that_speaks(v21, "warn")
    assert outcome.summary.startswith(f"{v21_video(v21, 0)} shows 48x64 pixels, info.json gives {CAMERA} 64x48")
    assert "; 1 more remark(s); 2 of 2 videos opened" in outcome.summary


def test_key_frames_far_apart_are_a_warning_with_their_cost(v21):
    encode(v21_video(v21, 1), pictures(1), g="250")
    outcome = the_one_that_speaks(v21, "warn")
    assert re.match(
        re.escape(f"{v21_video(v21, 1)} has 250 frames from one key frame to the next: a frame costs ")
        + r"[\d.]+ ms at random, [\d.]+ ms in sequence; 2 of 2",
        outcome.summary,
    )
    assert outcome.measured["key_frame_distance"] == {CAMERA: 250}
    assert set(outcome.measured["decode_ms"][CAMERA]) == {"random", "sequential"}
    assert "loses some quality" in outcome.hint.text


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_the_command_that_encodes_again_runs(v21):
    edit_info(v21, lambda info: info["features"][CAMERA].update(shape=[96, 128, 3]))
    for episode in (0, 1):  # the encoder takes no picture smaller than 64 x 64
        large = [picture.repeat(2, axis=0).repeat(2, axis=1) for picture in pictures(episode)]
        encode(v21_video(v21, episode), large, g="250" if episode else "2")
    (command,) = the_one_that_speaks(v21, "warn").hint.commands
    encoders = subprocess.run(["ffmpeg", "-hide_banner", "-encoders"], capture_output=True, text=True, check=True)
    if "libsvtav1" not in encoders.stdout:
        pytest.skip("this ffmpeg has no libsvtav1")
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert alone(context(f"data.root={v21}")).status == "pass"
    assert not list(v21.rglob("*.again.mp4"))


def cut_off(path):
    path.write_bytes(path.read_bytes()[:9000])


def a_text(path):
    path.write_text("<html>429: too many requests</html>" * 20)


def without_video(path):
    path.unlink()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)


def without_end(path):
    encode(path, pictures(1), container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            cut_off,
            r" \(9000 bytes\) cannot be opened: Invalid data .*; its last [\d,]+ bytes and its index \(moov\) are",
        ),
        (a_text, r" \(700 bytes\) cannot be opened: Invalid data .*; it is no mp4 file, it begins with b'<html>"),
        (without_video, " has no video stream$"),
        (without_end, r", episode 1, frame \d+: no frame .*, episode 1 has 277; its last 5,000 bytes are missing"),
    ],
)
def test_a_damaged_video_trips_it_alone(v21, damage, said):
    path = v21_video(v21, 1)
    damage(path)
    outcome = the_one_that_speaks(v21)
    assert re.search(re.escape(str(path)) + said, outcome.summary), outcome.summary


@pytest.mark.parametrize("damage", [cut_off, a_text])
def test_a_damaged_joined_video_trips_it_alone(v30, damage):
    damage(v30_video(v30))
    outcome = the_one_that_speaks(v30)
    assert outcome.summary.startswith(f"{v30_video(v30)} ({v30_video(v30).stat().st_size} bytes) cannot be opened: ")


def test_a_codec_without_decoder_trips_it_alone(tmp_path):
    root = shutil.copytree(V21, tmp_path / "g1")
    path = v21_video(root, 0)
    path.write_bytes(path.read_bytes().replace(b"av01", b"zzzz"))
    outcome = the_one_that_speaks(root)
    assert outcome.summary == f"{path}: PyAV {av.__version__} has no decoder for its codec"


def test_pyav_that_cannot_be_imported_is_named(v21, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    outcome = alone(context(f"data.root={v21}"))
    assert outcome.status == "fail"
    assert outcome.summary.startswith("PyAV, which decodes the videos, cannot be imported: ")


def test_a_frame_that_cannot_be_decoded_trips_it_alone(tmp_path):
    root = shutil.copytree(V21, tmp_path / "g1")
    path = v21_video(root, 1)
    with av.open(str(path)) as container:
        pos, size = next((p.pos, p.size) for i, p in enumerate(container.demux(video=0)) if i == 138)
    content = bytearray(path.read_bytes())
    content[pos : pos + size] = b"\xff" * size
    path.write_bytes(content)
    outcome = the_one_that_speaks(root)
    assert re.match(
        re.escape(f"{path}, episode 1, frame 138: ({len(content)} bytes) cannot be decoded at 4.6000 s: "),
        outcome.summary,
    )


def test_one_broken_video_hides_no_other(v21):
    a_text(v21_video(v21, 0))
    encode(v21_video(v21, 1), pictures(1)[:270])
    outcome = the_one_that_speaks(v21)
    assert outcome.summary.startswith(f"{v21_video(v21, 0)} (700 bytes) cannot be opened: ")
    assert outcome.summary.endswith("; 2 of the 2 videos looked at are wrong")
    assert outcome.evidence[1].startswith(f"{v21_video(v21, 1)}, episode 1, frame 270: ")
    assert outcome.measured["videos_opened"] == 1


def test_episodes_that_overlap_in_a_video_trip_it_alone(v30):
    (path,) = (v30 / "meta" / "episodes").rglob("*.parquet")
    table = pq.read_table(path)
    key = f"videos/{CAMERA}/from_timestamp"
    at = table.schema.get_field_index(key)
    pq.write_table(table.set_column(at, table.schema.field(key), pa.array([0.0, 6.0])), path)
    outcome = alone(context(f"data.root={v30}"))
    assert outcome.summary == (
        f"{v30_video(v30)}: by meta/episodes, episode 1 begins at 6.0000 s, before episode 0 ends at 7.3667 s"
    )


def test_only_cameras_that_are_decoded_are_opened(v21):
    other = "observation.images.wrist"
    edit_info(v21, lambda info: info["features"].update({other: info["features"][CAMERA]}))
    for episode in (0, 1):
        path = v21 / "videos" / "chunk-000" / other / v21_video(v21, episode).name
        path.parent.mkdir(exist_ok=True)
        a_text(path)
    checked = context(f"data.root={v21}")
    assert alone(checked).status == "pass"
    checked.run.facts = dataclasses.replace(checked.run.facts, decodes_all_cameras=True)
    outcome = alone(checked)
    assert outcome.status == "fail"
    assert f"/{other}/" in outcome.summary
    assert outcome.summary.endswith("; 2 of the 4 videos looked at are wrong")


def test_a_camera_that_the_dataset_lacks_is_left_to_data_features(v21):
    checked = context(f"data.root={v21}", "data.cameras.base_0_rgb=cam_high")
    results = {r.check.id: r for r in run_checks(CHECKS, checked, max_parallel=1)}
    assert spoken(results) == {"data.features"}


def with_five_episodes(root):
    """Episode 0 five times."""
    lines = (root / "meta" / "episodes.jsonl").read_text().splitlines()
    entry = json.loads(lines[0])
    data_file = root / "data" / "chunk-000" / "episode_000000.parquet"
    table, video = pq.read_table(data_file), v21_video(root, 0).read_bytes()
    shutil.rmtree(root / "data")
    data_file.parent.mkdir(parents=True)
    for episode in range(5):
        numbers = {"episode_index": [episode] * 221, "index": list(range(221 * episode, 221 * episode + 221))}
        for key, values in numbers.items():
            table = table.set_column(table.schema.get_field_index(key), key, pa.array(values, pa.int64()))
        pq.write_table(table, data_file.with_name(f"episode_{episode:06d}.parquet"))
        v21_video(root, episode).write_bytes(video)
    written = [json.dumps({**entry, "episode_index": episode}) for episode in range(5)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(written))
    edit_info(root, lambda info: info.update(total_episodes=5, total_frames=5 * 221, total_videos=5))


def test_a_look_at_a_part_says_so(v21, monkeypatch):
    with_five_episodes(v21)
    told = []
    checked = context(f"data.root={v21}", progress=lambda *words: told.append(words))
    assert alone(checked).summary.startswith(
        "5 of 5 videos opened (mpeg4 48x64), first, middle and last frame of 5 of 5"
    )
    assert told[-1] == ("videos looked at", 5, 5)
    monkeypatch.setattr(data_videos, "BUDGET_S", 0.0)
    outcome = alone(context(f"data.root={v21}"))
    assert outcome.summary.startswith("2 of 5 videos opened (mpeg4 48x64), first, middle and last frame of 2 of 5 ")
    a_text(v21_video(v21, 2))
    assert alone(context(f"data.root={v21}")).status == "pass"
    assert alone(context(f"data.root={v21}", level="full")).status == "fail"
