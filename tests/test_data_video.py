import multiprocessing
import pickle
import random
from pathlib import Path

import av
import numpy as np
import pytest

from preflight.data import frames as open_frames
from preflight.data.frames import read_frame
from preflight.errors import DataError

REPOSITORY = Path(__file__).parent.parent
CAMERA = "observation.images.cam_high"
JOINED = REPOSITORY / f"examples/data/g1/videos/{CAMERA}/chunk-000/file-000.mp4"
SINGLE = REPOSITORY / f"tests/data/g1_v21/videos/chunk-000/{CAMERA}/episode_000001.mp4"


@pytest.fixture(scope="module")
def frames():
    """Every frame of the second episode, decoded one after the other."""
    with av.open(str(SINGLE)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def coded(path, codec, count=40, fps=30, options=None, pix_fmt="yuv420p"):
    """Writes a video whose frame i has brightness 6 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for i in range(count):
            picture = np.full((48, 64, 3), 6 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_random_access_gives_the_frames_of_sequential_decoding(frames):
    assert len(frames) == 277
    order = [*range(0, 277, 3), 276, 0]
    random.Random(0).shuffle(order)
    for i in order:
        frame = read_frame(SINGLE, i / 30)
        assert frame.dtype == np.uint8
        np.testing.assert_array_equal(frame, frames[i])


def test_the_joined_video_holds_the_same_frames(frames):
    for i in (0, 1, 150, 276):
        np.testing.assert_array_equal(read_frame(JOINED, (221 + i) / 30), frames[i])


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("mpeg4", {"g": "12", "bf": "2"}),  # B-frames: decoded in another order than shown
        ("mpeg4", {"g": "250"}),  # one key frame
        ("mjpeg", {}),
    ],
)
def test_codecs_and_key_frame_distances(tmp_path, codec, options):
    path = coded(tmp_path / "v.mp4", codec, options=options, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
    with av.open(str(path)) as container:
        decoded = {float(frame.time): frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
    assert len(decoded) == 40
    times = list(decoded)
    random.Random(1).shuffle(times)
    for time in times:
        np.testing.assert_array_equal(read_frame(path, time), decoded[time])


def test_only_frames_within_the_tolerance_are_given(frames):
    np.testing.assert_array_equal(read_frame(SINGLE, 100 / 30 + 0.00009), frames[100])
    np.testing.assert_array_equal(read_frame(SINGLE, 100 / 30 - 0.00009), frames[100])
    np.testing.assert_array_equal(read_frame(SINGLE, 100.4 / 30, tolerance_s=0.02), frames[100])
    with pytest.raises(DataError) as error:
        read_frame(SINGLE, 100.4 / 30)
    assert error.value.message == f"{SINGLE}: no frame within 0.0001 s of 3.3467 s, the nearest is at 3.3333 s"


def test_a_time_after_the_end_or_before_the_start():
    with pytest.raises(DataError, match=r"no frame within 0.0001 s of 20.0000 s, the nearest is at 9.2000 s"):
        read_frame(SINGLE, 20.0)
    with pytest.raises(DataError, match=r"no frame within 0.0001 s of -1.0000 s, the nearest is at 0.0000 s"):
        read_frame(SINGLE, -1.0)


def test_damaged_videos(tmp_path):
    path = tmp_path / "v.mp4"
    with pytest.raises(DataError) as error:
        read_frame(path, 0)
    assert error.value.message == f"{path} is missing"
    content = SINGLE.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError) as error:
        read_frame(path, 0)
    size = len(content) // 2
    assert error.value.message == f"{path} ({size} bytes) cannot be opened: Invalid data found when processing input"
    assert error.value.hint == "The video is damaged or cut off: fetch it again."
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(DataError) as error:
        read_frame(path, 0)
    assert error.value.message == f"{path} is a Git LFS pointer, not the content"
    assert "git lfs pull" in error.value.hint
    path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        read_frame(path, 0)
    assert error.value.message == f"{path} is empty"


def test_a_video_whose_end_was_lost(tmp_path):
    # With the index in front, a cut file opens and its first half decodes.
    whole = coded(tmp_path / "whole.mp4", "mpeg4", options={"g": "5"})
    fast = tmp_path / "fast.mp4"
    with av.open(str(whole)) as source, av.open(str(fast), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = fast.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: len(content) * 3 // 4])
    assert read_frame(cut, 0).mean() < 3
    with pytest.raises(DataError) as error:
        read_frame(cut, 39 / 30)
    assert str(cut) in error.value.message
    assert "1.3000 s" in error.value.message


def test_a_file_without_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="has no video stream"):
        read_frame(path, 0)


def test_open_videos_are_bounded(tmp_path, frames):
    paths = [coded(tmp_path / f"{i}.mp4", "mpeg4", count=2) for i in range(open_frames.MAX_OPEN_VIDEOS + 3)]
    for path in paths:
        read_frame(path, 0)
    assert list(open_frames._open_videos) == paths[3:]
    np.testing.assert_array_equal(read_frame(SINGLE, 0), frames[0])


def _frame_in_child(pipe):
    pipe.send((len(open_frames._open_videos), read_frame(SINGLE, 2.0)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:os.fork.*:RuntimeWarning")
def test_a_fork_opens_its_own_videos(frames):
    read_frame(SINGLE, 1.0)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_frame_in_child, args=(theirs,))
    child.start()
    inherited, frame = ours.recv()
    child.join()
    assert inherited == 0
    np.testing.assert_array_equal(frame, frames[60])
    np.testing.assert_array_equal(read_frame(SINGLE, 3.0), frames[90])
    assert pickle.loads(pickle.dumps(read_frame)) is read_frame
