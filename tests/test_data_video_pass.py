"""Frames of one video in one pass, and videos that change while they are open."""

import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from recoded import encode, pictures

from preflight.data import frames as frames_module
from preflight.data.frames import WantedFrame, max_open_videos, read_frame, read_frames
from preflight.data.video import Video
from preflight.data.video_signature import signature_of
from preflight.errors import DataError

REPOSITORY = Path(__file__).parent.parent
CAMERA = "observation.images.cam_high"
SINGLE = REPOSITORY / f"tests/data/g1_v21/videos/chunk-000/{CAMERA}/episode_000001.mp4"


class Counted(Video):
    """A video that counts how often it seeks."""

    seeks = 0

    def _seek(self, start):
        self.seeks += 1
        super()._seek(start)


def wanted(path, *places, **more):
    return [WantedFrame(path=path, timestamp_s=i / 30, **more) for i in places]


def in_sequence(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def decoded():
    return in_sequence(SINGLE)


def test_frames_come_in_the_order_asked_some_twice(tmp_path, decoded):
    other = Path(shutil.copy(SINGLE, tmp_path / "other.mp4"))
    order = [200, 3, 201, 3, 17, 0, 276]
    asked = [one for pair in zip(wanted(SINGLE, *order), wanted(other, *order), strict=True) for one in pair]
    got = read_frames(asked)
    for place, one, again in zip(order, got[::2], got[1::2], strict=True):
        np.testing.assert_array_equal(one, decoded[place])
        np.testing.assert_array_equal(again, decoded[place])
    assert read_frames([]) == []


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "30", "bf": "3"}),
        ("libx264", {"g": "20", "bf": "2", "x264-params": "open-gop=1"}),
        ("libx265", {"g": "20", "bf": "4", "preset": "ultrafast", "x265-params": "log-level=none:open-gop=1"}),
        ("mpeg4", {"g": "12", "bf": "2"}),
        ("libvpx-vp9", {"g": "15", "deadline": "realtime", "cpu-used": "8"}),
    ],
)
def test_a_pass_gives_what_decoding_everything_gives(tmp_path, codec, options):
    # Frames that no other one needs are passed over on the way; those of the next open group need the one before.
    path = tmp_path / "v.mp4"
    encode(path, pictures(0)[:90], codec=codec, **options)
    whole = in_sequence(path)
    assert len(whole) == 90
    draw = random.Random(0)
    for _ in range(12):
        places = draw.choices(range(90), k=7)
        for place, frame in zip(places, read_frames(wanted(path, *places)), strict=True):
            np.testing.assert_array_equal(frame, whole[place])


def test_the_decoder_goes_on_within_a_group_of_pictures(tmp_path):
    path = tmp_path / "v.mp4"
    encode(path, pictures(0)[:90], g="30")
    whole = in_sequence(path)
    video = Counted(path)
    for count, places in ((1, (2, 9, 10, 25)), (2, (26, 40)), (2, (41, 59)), (3, (75,)), (4, (74,))):
        for place, frame in zip(places, video.frames_at([i / 30 for i in places]), strict=True):
            np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), whole[place])
        assert video.seeks == count, places
    video.close()


def test_nothing_is_decoded_after_the_wanted_frame():
    # Timestamps of a dataset are float32: 0.1 is a little after the frame's own time, 0.3 a little before.
    times = [float(np.float32(i / 30)) for i in range(1, 277, 2)]
    assert any(time > i / 30 for i, time in zip(range(1, 277, 2), times, strict=True))
    video = Video(SINGLE)
    for i, time in zip(range(1, 277, 2), times, strict=True):
        list(video.frames_at([time]))
        assert round(video._at * float(video._stream.time_base) * 30) == i
    video.close()


def test_a_failure_leaves_the_others_alone(decoded):
    with pytest.raises(DataError, match=r"no frame within 0.0001 s of 20.0000 s, the nearest is at 9.2000 s"):
        read_frames(wanted(SINGLE, 3, 600))
    np.testing.assert_array_equal(read_frames(wanted(SINGLE, 3))[0], decoded[3])


def test_the_nearest_frame_is_told_though_it_was_not_wanted(tmp_path):
    path = tmp_path / "v.mp4"
    encode(path, pictures(0)[:40], g="12", bf="2")
    for place in range(12, 24):
        with pytest.raises(DataError) as error:
            read_frame(path, (place + 0.2) / 30)
        assert error.value.message.endswith(f"the nearest is at {place / 30:.4f} s")


def test_a_frame_that_does_not_decode_is_named(tmp_path):
    content = bytearray(SINGLE.read_bytes())
    with av.open(str(SINGLE)) as container:
        key = next(p for p in container.demux(video=0) if p.is_keyframe and p.pts * p.time_base > 2)
        at, position, size = float(key.pts * key.time_base), key.pos, key.size
    path = tmp_path / "v.mp4"
    content[position : position + size] = bytes(size)
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_frame(path, at)
    assert error.value.message.startswith(f"{path}")
    assert f"{at:.4f} s" in error.value.message
    assert read_frame(path, 0).any()


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_made_from_a_damaged_one_are_never_given(tmp_path, codec):
    path = tmp_path / "v.mp4"
    encode(path, pictures(0)[:30], codec=codec, g="10", bf="0")
    whole = in_sequence(path)
    with av.open(str(path)) as container:
        key = [packet for packet in container.demux(video=0) if packet.is_keyframe][1]
        start, end = key.pos + 40, key.pos + key.size
    content = bytearray(path.read_bytes())
    content[start:end] = np.random.default_rng(0).bytes(end - start)
    path.write_bytes(content)
    for place in range(30):
        if place // 10 == 1:
            with pytest.raises(DataError) as error:
                read_frame(path, place / 30)
            assert error.value.message.startswith(f"{path}")
            assert f"{place / 30:.4f} s" in error.value.message
        else:
            np.testing.assert_array_equal(read_frame(path, place / 30), whole[place])


def changed(path):
    return f"^{path} (was written to again|had [0-9,]+ bytes and has [0-9,]+) since the run opened its dataset: "


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "grown"])
def test_a_video_that_is_written_to_while_open_is_refused(tmp_path, damage):
    path = Path(shutil.copy(SINGLE, tmp_path / "v.mp4"))
    os.utime(path, ns=(10**18, 10**18))
    read_frame(path, 0)
    with open(path, "r+b") as file:
        if damage == "truncated":
            file.truncate(100_000)
        elif damage == "overwritten":
            file.seek(60_000)
            file.write(bytes(file.read(200_000)[::-1]))
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"more")
    with pytest.raises(DataError, match=changed(path)) as error:
        read_frames(wanted(path, 5, 200))
    assert "resume from the last checkpoint" in error.value.hint
    assert path not in frames_module._open_videos


@pytest.mark.parametrize("how", ["replaced", "deleted"])
def test_a_video_that_is_replaced_is_read_as_it_was(tmp_path, decoded, how):
    path = Path(shutil.copy(SINGLE, tmp_path / "v.mp4"))
    before = signature_of(path)
    np.testing.assert_array_equal(read_frame(path, 1.0), decoded[30])
    if how == "replaced":
        encode(tmp_path / "new.mp4", pictures(1))
        os.replace(tmp_path / "new.mp4", path)
    else:
        path.unlink()
    for place in (8, 250):
        np.testing.assert_array_equal(read_frames(wanted(path, place, signature=before))[0], decoded[place])
    # Opened again it is another one: never silently.
    frames_module._close(path)
    with pytest.raises(DataError, match=changed(path) if how == "replaced" else f"^{path} is missing$"):
        read_frames(wanted(path, 8, signature=before))


LIMITED = """
import resource, sys
from pathlib import Path
from preflight.data.frames import WantedFrame, _open_videos, max_open_videos, read_frames
paths = [Path(p) for p in sys.argv[1:]]
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
sums = [int(frame.sum()) for frame in read_frames([WantedFrame(path=p, timestamp_s=0) for p in paths])]
print(max_open_videos(), len(_open_videos), len(set(sums)))
held = []
while True:
    try:
        held.append(open(paths[0]))
    except OSError:
        break
held.pop().close()  # one is left: ours have to go for the next video
read_frames([WantedFrame(path=p, timestamp_s=1 / 30) for p in paths])
print(len(_open_videos))
while _open_videos:
    _open_videos.popitem()[1].video.close()
    held.append(open(paths[0]))
held.append(open(paths[0]))
try:
    read_frames([WantedFrame(path=paths[0], timestamp_s=0)])
except Exception as error:
    print(type(error).__name__, error.message.replace(str(paths[0]), "V"), "|", error.hint)
"""


def test_open_videos_leave_descriptors_to_others(tmp_path):
    assert max_open_videos() <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
    paths = [tmp_path / f"{i}.mp4" for i in range(12)]
    encode(paths[0], pictures(0)[:4])
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    ran = subprocess.run([sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True)
    assert ran.stdout.splitlines() == [
        "8 8 1",
        ran.stdout.splitlines()[1],
        "TooManyOpenFilesError V cannot be opened: too many open files | Run: ulimit -n 65536",
    ], ran.stderr
    assert 1 <= int(ran.stdout.splitlines()[1]) <= 8
