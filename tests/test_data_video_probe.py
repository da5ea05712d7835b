"""What is seen in one video, and in which order a pass takes many."""

import dataclasses

import av
import numpy as np
import pytest
from recoded import CAMERA, LENGTHS, V21, V30, encode, in_milliframes, pictures, small_copy, v21_video, v30_video

from preflight.data import video_probe
from preflight.data.episodes import read_episodes
from preflight.data.metadata import Feature, read_info
from preflight.data.mp4 import torn
from preflight.data.video_files import VideoFile, frames_needed, impossible_layout, video_files
from preflight.data.video_pass import look_at, spread
from preflight.data.video_probe import decode_cost, probe
from preflight.errors import DataError

FRAMES = LENGTHS[1]


def files_of(root):
    info = read_info(root)
    return video_files(info, read_episodes(info), CAMERA)


@pytest.fixture
def video(tmp_path):
    """A place for the video of a dataset with one episode, and what should lie there."""
    return VideoFile(
        camera=CAMERA,
        path=tmp_path / "v.mp4",
        fps=30.0,
        size=(48, 64),
        episode=np.array([7]),
        length=np.array([FRAMES]),
        start_s=np.array([0.0]),
    )


def seen_in(video, **options):
    encode(video.path, pictures(1), **options)
    return probe(video, [0])


def test_real_videos_are_described():
    (joined,) = files_of(V30)
    assert joined.path == v30_video(V30)
    assert joined.size == (480, 640)
    assert (joined.episode.tolist(), joined.length.tolist()) == ([0, 1], [221, 277])
    assert joined.start_s == pytest.approx([0, 221 / 30])
    assert frames_needed(joined) == 498
    for one, frames in ((joined, 498), *zip(files_of(V21), LENGTHS, strict=True)):
        seen = probe(one, range(len(one.length)), packets="all")
        assert (seen.faults, seen.remarks, seen.opened) == ((), (), True)
        assert (seen.codec, seen.size, seen.frames, seen.key_frame_distance) == ("av1", (480, 640), frames, 2)
        assert seen.decoded == len(one.length)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"g": "12", "bf": "2"},  # B-frames: stored in another order, with an edit list at the start
        {"container_options": {"movflags": "faststart"}},
        {"container_options": {"movflags": "frag_keyframe+empty_moov"}},  # its header counts no frames
    ],
)
def test_sound_videos_however_they_are_written(video, options):
    seen = seen_in(video, **options)
    assert (seen.faults, seen.remarks, seen.frames, seen.decoded) == ((), (), FRAMES, 1)
    assert seen.key_frame_distance == int(options.get("g", 2))


def test_another_container_and_a_rotation_are_no_fault(video):
    other = dataclasses.replace(video, path=video.path.with_suffix(".mov"))
    assert seen_in(other).faults == ()
    turned = video.path.with_name("turned.mp4")
    # The matrix of the track's header: a quarter turn, which no reader applies.
    identity, quarter = (b"".join(n.to_bytes(4, "big") for n in m) for m in (_matrix(1, 0, 0, 1), _matrix(0, 1, -1, 0)))
    encode(video.path, pictures(1))
    head, track, rest = video.path.read_bytes().partition(b"tkhd")
    assert identity in rest
    turned.write_bytes(head + track + rest.replace(identity, quarter, 1))
    seen = probe(dataclasses.replace(video, path=turned), [0])
    assert (seen.faults, seen.remarks, seen.size) == ((), (), (48, 64))


def test_names_that_are_no_utf_8_are_no_fault(video):
    encode(video.path, pictures(1))
    content = video.path.read_bytes()
    assert b"VideoHandler" in content
    video.path.write_bytes(content.replace(b"VideoHandler", b"VideoH\xe4ndler"))
    seen = probe(video, [0])
    assert (seen.faults, seen.remarks, seen.decoded) == ((), (), 1)


def test_a_damaged_frame_that_only_the_measurement_meets_is_named(video):
    content = bytearray(v21_video(V21, 1).read_bytes())
    with av.open(str(v21_video(V21, 1))) as container:
        pos, size = next((p.pos, p.size) for i, p in enumerate(container.demux(video=0)) if i == 5)
    content[pos : pos + size] = b"\xff" * size
    video.path.write_bytes(content)
    assert probe(dataclasses.replace(video, size=(480, 640)), [0]).faults == ()
    with pytest.raises(DataError, match="v.mp4: its first 16 frames cannot be decoded: "):
        decode_cost(video)


def _matrix(a, b, c, d):
    one = 1 << 16
    return [n % (1 << 32) for n in (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)]


def test_frames_are_counted_as_far_as_an_edit_list_shows_them(video):
    # Episodes that were cut out without encoding keep hidden frames in front of the first that is shown.
    source = video.path.with_name("long.mp4")
    encode(source, [*pictures(1)[:20], *pictures(1)])
    with av.open(str(source)) as long, av.open(str(video.path), "w") as cut:
        stream = cut.add_stream_from_template(long.streams.video[0])
        for packet in long.demux(video=0):
            if packet.dts is not None:
                for name in ("pts", "dts"):
                    setattr(packet, name, getattr(packet, name) - round(20 / 30 / packet.time_base))
                packet.stream = stream
                cut.mux(packet)
    with av.open(str(video.path)) as container:
        assert container.streams.video[0].frames == FRAMES + 20
    seen = probe(video, [0])
    assert (seen.faults, seen.remarks, seen.frames) == ((), (), FRAMES)


def test_a_long_video_is_compared_frame_by_frame_only_when_asked(video, monkeypatch):
    monkeypatch.setattr(video_probe, "SOME_PACKETS", 50)
    drifted = [t + (5 if t not in (0, 138_000, 276_000) and t > 60_000 else 0) for t in in_milliframes(pictures(1))]
    seen = seen_in(video, times=drifted)
    assert (seen.faults, seen.frames, seen.decoded) == ((), FRAMES, 1)
    (fault,) = probe(video, [0], packets="all").faults
    assert fault == (
        f"{video.path}, episode 7, frame 61: no frame within 0.0001 s of 2.0333 s, the nearest is at 2.0335 s (in all "
        "214 frame(s) of 1 episode(s))"
    )
    seen = seen_in(video, g="250")
    assert seen.key_frame_distance == 50  # of as many packets, at least


def test_a_rate_that_meets_the_decoded_frames_by_chance_is_found(video):
    # Frame 138 of 30 fps is frame 115 of 25 fps, and frame 276 is frame 230.
    (fault,) = seen_in(video, fps=25).faults
    assert fault == (
        f"{video.path}, episode 7, frame 1: no frame within 0.0001 s of 0.0333 s, the nearest is at 0.0400 s (in all "
        "230 frame(s) of 1 episode(s)); it plays at 25 fps, info.json says 30"
    )


def test_a_variable_rate_whose_frames_are_in_place_is_only_remarked(video):
    doubled = sorted([*in_milliframes(pictures(1)), 500, 1500])
    encode(video.path, [*pictures(1), *pictures(1)[:2]], times=doubled)
    seen = probe(video, [0])
    assert seen.faults == ()
    assert seen.remarks == (f"{video.path} has 279 frames, episode 7 has 277: the rest is never seen",)
    stretched = dataclasses.replace(video, length=np.array([FRAMES - 1]))
    encode(video.path, pictures(1), times=[*in_milliframes(pictures(1))[:-1], 400_000])
    seen = probe(stretched, [0])
    assert seen.faults == ()
    assert seen.remarks[1].endswith(
        "it plays at 20.72 fps, info.json says 30, but each frame is where it is looked for"
    )


def test_two_frames_at_one_time_are_remarked(video):
    """A packet twice, as where two recordings were joined."""
    encode(source := video.path.with_name("once.mkv"), pictures(1), fps=25)
    twice = dataclasses.replace(video, path=video.path.with_suffix(".mkv"), fps=25.0)
    with av.open(str(source)) as once, av.open(str(twice.path), "w") as target:
        stream = target.add_stream_from_template(once.streams.video[0])
        for number, packet in enumerate(once.demux(video=0)):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
                if number == 100:
                    copy = av.Packet(bytes(packet))
                    copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, stream
                    target.mux(copy)
    seen = probe(twice, [0], packets="all")
    assert seen.faults == ()
    assert seen.remarks == (
        f"{twice.path} has 1 frame(s) at the time of another one",
        f"{twice.path} has 278 frames, episode 7 has 277: the rest is never seen",
    )


def test_places_that_cannot_be_true_are_named(video):
    two = dataclasses.replace(video, episode=np.array([3, 4]), length=np.array([100, 177]))
    for starts, said in (
        ([0.0, 3.0], "by meta/episodes, episode 4 begins at 3.0000 s, before episode 3 ends at 3.3333 s"),
        ([0.0, np.nan], ", episode 4: from_timestamp in meta/episodes is nan"),
        ([-0.5, 3.4], ", episode 3: from_timestamp in meta/episodes is -0.5"),
    ):
        wrong = dataclasses.replace(two, start_s=np.array(starts))
        assert impossible_layout(wrong).endswith(said)
        encode(video.path, pictures(1))
        assert probe(wrong, [0, 1]).faults == (impossible_layout(wrong),)
    assert impossible_layout(dataclasses.replace(two, start_s=np.array([0.0, 3.33333]))) is None


@pytest.mark.parametrize(
    ("shape", "names", "size"),
    [
        ((48, 64, 3), ("height", "width", "channels"), (48, 64)),
        ((3, 48, 64), ("channels", "height", "width"), (48, 64)),
        ((64, 48, 3), ("width", "height", "channel"), (48, 64)),
        ((48, 64, 3), None, (48, 64)),
        ((3, 48, 64), None, (48, 64)),
        ((3, 48, 64), ("height", "width", "channel"), (48, 64)),
        ((48, 64, 3), ("channel", "height", "width"), (48, 64)),
        ((48, 64), ("height", "width"), (48, 64)),
        ((48, 64), None, None),
    ],
)
def test_height_and_width_are_found_in_every_order(tmp_path, shape, names, size):
    info = read_info(V21)
    info.features[CAMERA] = Feature(dtype="video", shape=shape, names=names)
    assert video_files(info, read_episodes(info), CAMERA)[0].size == size


def test_what_is_torn_off_an_mp4_file_is_said(tmp_path):
    content = v21_video(V21, 0).read_bytes()
    path = tmp_path / "v.mp4"
    path.write_bytes(content)
    assert torn(path) is None
    path.write_bytes(content[: content.index(b"moov") - 4])
    assert torn(path) == "its index (moov) is missing"
    path.write_bytes(content[:-100])
    assert torn(path) == "its last 100 bytes are missing"
    path.write_bytes(content[:5000])
    assert torn(path) == f"its last {content.index(b'moov') - 4 - 5000:,} bytes and its index (moov) are missing"
    path.write_bytes(b"<html>" * 9)
    assert torn(path) == "it is no mp4 file, it begins with b'<html><html><htm'"
    assert torn(tmp_path) is None


def test_what_a_frame_costs_is_measured_on_frames_of_all_episodes(video):
    encode(video.path, pictures(1))
    cost = decode_cost(video)
    assert min(cost.random_ms, cost.sequential_ms) > 0
    elsewhere = dataclasses.replace(
        video, episode=np.arange(2), length=np.array([5, 1000]), start_s=np.array([0, FRAMES / 30])
    )
    with pytest.raises(DataError, match="no frame within 0.0001 s of"):
        decode_cost(elsewhere)


def test_a_beginning_of_the_order_is_spread_over_all():
    assert list(spread(0)) == []
    assert list(spread(9)) == [0, 8, 4, 2, 6, 1, 3, 5, 7]
    for count in (1, 2, 3, 10, 100):
        assert sorted(spread(count)) == list(range(count))


def test_a_pass_without_time_looks_at_both_ends_and_says_what_it_saw(tmp_path):
    one, other = files_of(small_copy(V21, tmp_path / "g1"))
    videos = [dataclasses.replace(one, episode=np.array([i])) for i in range(6)]
    seen = look_at([videos, [other]], threads=2, limit_s=0, every_frame=False)
    assert [found.video.episode.tolist() for found in seen] == [[0], [5], [1]]
    assert len(look_at([videos, [other]], threads=2, limit_s=600, every_frame=False)) == 7


def test_all_episodes_of_one_video_are_decoded_and_all_pieces_counted(tmp_path):
    (joined,) = files_of(small_copy(V30, tmp_path / "g1"))
    length = 18
    many = dataclasses.replace(
        joined,
        episode=np.arange(27),
        length=np.full(27, length),
        start_s=np.arange(27) * length / 30,
    )
    told = []
    (seen,) = look_at([[many]], threads=2, limit_s=600, every_frame=True, progress=lambda *done: told.append(done))
    assert seen.decoded == 27
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    (seen,) = look_at([[many]], threads=2, limit_s=0, every_frame=True)
    assert seen.decoded == 1


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_frames_that_the_decoder_fills_in_are_found_when_all_are_decoded(video, codec):
    encode(video.path, pictures(1), codec=codec, g="10")
    content = bytearray(video.path.read_bytes())
    middle = len(content) // 2
    content[middle - 150 : middle + 150] = bytes(300)
    video.path.write_bytes(content)
    assert probe(video, [0], packets="all").decoded == 1
    told = []
    seen = probe(video, [0], packets="all", every_frame=True, told=told.append)
    (fault,) = seen.faults
    assert fault.startswith(f"{video.path}, episode 7, frame 150: it is damaged, the decoder fills it in")
    assert 0 < FRAMES - seen.frames_decoded < 10
    assert FRAMES - 10 < sum(told) < FRAMES


def test_decoding_all_frames_can_be_stopped(video):
    encode(video.path, pictures(1))
    seen = probe(video, [0], every_frame=True, stop=lambda: True)
    assert (seen.faults, seen.frames_decoded) == ((), 32)
    assert probe(video, [0], every_frame=True).frames_decoded == FRAMES


def test_a_size_that_is_not_the_shape_is_marked(video):
    encode(video.path, [picture[:32] for picture in pictures(1)])
    assert probe(video, [0]).wrong_size
