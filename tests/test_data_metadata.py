import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preflight.data.episodes import missing_files, read_episodes
from preflight.data.metadata import read_info
from preflight.errors import DataError

REPOSITORY = Path(__file__).parent.parent
V30 = REPOSITORY / "examples" / "data" / "g1"
V21 = REPOSITORY / "tests" / "data" / "g1_v21"
CAMERA = "observation.images.cam_high"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(params=[V30, V21], ids=["v30", "v21"])
def root(request, tmp_path):
    return Path(shutil.copytree(request.param, tmp_path / "set"))


@pytest.fixture
def v30(tmp_path):
    return Path(shutil.copytree(V30, tmp_path / "set"))


@pytest.fixture
def v21(tmp_path):
    return Path(shutil.copytree(V21, tmp_path / "set"))


def edit(root, **changes):
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(function, *arguments):
    with pytest.raises(DataError) as error:
        function(*arguments)
    return error.value


def test_info_of_both_formats():
    for root, version in ((V30, "v3.0"), (V21, "v2.1")):
        info = read_info(root)
        assert (info.codebase_version, info.fps, info.total_frames, info.total_episodes) == (version, 30.0, 498, 2)
        assert info.robot_type == "Unitree_G1_Inspire"
        assert info.camera_keys == info.video_keys == (CAMERA,)
        assert info.image_keys == ()
        state = info.features["observation.state"]
        assert (state.dtype, state.shape, len(state.names), state.names[3]) == ("float32", (26,), 26, "kLeftElbow")
        assert info.features["timestamp"].names is None


def test_names_may_be_an_object_of_positions(v21):
    features = json.loads((v21 / "meta" / "info.json").read_text())["features"]
    features["action"] |= {"shape": [3], "names": {"gripper": 2, "delta_x": 0, "delta_y": 1}}
    features["observation.state"]["names"] = {"motors": ["a", "b"], "hands": ["c"]}
    edit(v21, features=features)
    read = read_info(v21).features
    assert read["action"].names == ("delta_x", "delta_y", "gripper")
    assert read["observation.state"].names == ("a", "b", "c")


def test_reading_info_imports_nothing_heavy():
    script = (
        f"import sys, pathlib; from preflight.data.metadata import read_info; read_info(pathlib.Path({str(V30)!r}))\n"
        "print({'numpy', 'pyarrow', 'torch', 'av', 'jax'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout == "set()\n", ran.stderr


def test_both_formats_have_the_same_episodes():
    episodes = {root: read_episodes(read_info(root)) for root in (V30, V21)}
    for e in episodes.values():
        assert e.length.tolist() == [221, 277]
        assert e.from_index.tolist() == [0, 221]
        assert e.to_index.tolist() == [221, 498]
        assert e.tasks == ("Pick up the yellow bottle on the table.",)
        assert [e.of_frame(i) for i in (0, 220, 221, 497)] == [0, 0, 1, 1]
    v30, v21 = episodes[V30], episodes[V21]
    assert v30.data_file.tolist() == v30.videos[CAMERA].file.tolist() == [0, 0]
    assert v30.data_row.tolist() == [0, 221]
    np.testing.assert_allclose(v30.videos[CAMERA].from_timestamp, [0, 221 / 30], rtol=1e-12)
    assert v21.data_file.tolist() == v21.videos[CAMERA].file.tolist() == [0, 1]
    assert v21.data_row.tolist() == [0, 0]
    assert v21.videos[CAMERA].from_timestamp.tolist() == [0, 0]


def test_files_lie_where_the_templates_say():
    v21 = read_info(V21)
    assert v21.data_file(0, 1) == V21 / "data/chunk-000/episode_000001.parquet"
    assert v21.video_file(CAMERA, 2, 2345) == V21 / f"videos/chunk-002/{CAMERA}/episode_002345.mp4"
    v30 = read_info(V30)
    assert v30.data_file(0, 12) == V30 / "data/chunk-000/file-012.parquet"
    assert v30.video_file(CAMERA, 1, 0) == V30 / f"videos/{CAMERA}/chunk-001/file-000.mp4"


def test_format_v20_is_read_like_v21(v21):
    edit(v21, codebase_version="v2.0")
    (v21 / "meta" / "episodes_stats.jsonl").unlink()
    assert read_episodes(read_info(v21)).length.tolist() == [221, 277]


def test_rows_of_episodes_that_share_files_out_of_order():
    from preflight.data.episodes import _rows_in_file

    length, chunk, file = np.array([3, 4, 5, 6, 7]), np.array([0, 1, 0, 0, 1]), np.array([0, 0, 1, 0, 0])
    assert _rows_in_file(length, chunk, file).tolist() == [0, 0, 0, 3, 4]


def test_missing_folder_suggests_the_near_one(v30):
    error = refusal(read_info, v30.parent / "sett")
    assert error.message == f"{v30.parent / 'sett'}: no such folder"
    assert error.hint == f"Did you mean {v30}?"


def test_folder_without_info_says_what_is_there(v30, tmp_path):
    error = refusal(read_info, tmp_path)
    assert error.message == f"{tmp_path} is no LeRobot dataset: it has no meta/info.json"
    assert error.hint == "These folders in it are datasets: set"
    assert "found there: chunk-000" in refusal(read_info, v30 / "data").hint
    (tmp_path / "void").mkdir()
    assert refusal(read_info, tmp_path / "void").message == f"{tmp_path / 'void'} is empty: no LeRobot dataset"
    assert "is a file, not a dataset's folder" in refusal(read_info, v30 / "LICENSE").message


def test_broken_json_is_placed(root):
    path = root / "meta" / "info.json"
    path.write_text('{\n  "fps": 30,\n  "features": {,\n')
    assert refusal(read_info, root).message.startswith(f"{path}, line 3, column 16: not valid JSON (")
    path.write_text("[1]")
    assert refusal(read_info, root).message == f"{path}: expected an object, got a list"
    path.write_text("")
    assert refusal(read_info, root).message == f"{path} is empty"
    path.write_bytes(b'{"robot_type": "\xff"}')
    assert refusal(read_info, root).message == f"{path} is not UTF-8 text (byte 16)"
    path.write_text("[" * 100_000)
    assert refusal(read_info, root).message == f"{path}: JSON nested too deeply to be metadata"
    path.write_text(LFS_POINTER)
    error = refusal(read_info, root)
    assert error.message == f"{path} is a Git LFS pointer, not the content"
    assert "git lfs pull" in error.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_says_so(root):
    path = root / "meta" / "info.json"
    path.chmod(0)
    error = refusal(read_info, root)
    assert error.message == f"{path} cannot be read (Permission denied)"
    assert error.hint == f"Make it readable: chmod u+r {path}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, "dataset format v1.6 is not supported (supported: v2.0, v2.1, v3.0)"),
        ({"codebase_version": "v4.0"}, "dataset format v4.0 is not supported (supported: v2.0, v2.1, v3.0)"),
        ({"codebase_version": 3}, "codebase_version must be a string, got 3"),
        ({"fps": "30"}, "fps must be a number, got a string"),
        ({"fps": True}, "fps must be a number, got a boolean"),
        ({"fps": 0}, "fps must be positive, got 0"),
        ({"total_frames": 0}, "total_frames must be positive, got 0"),
        ({"total_episodes": 1.5}, "total_episodes must be an integer, got 1.5"),
        ({"features": []}, "features must be an object, got a list"),
        ({"features": {"action": 1}}, "features['action'] must be an object, got 1"),
        ({"features": {"a": {"shape": [1]}}}, "features['a'].dtype must be a string, got null"),
        ({"features": {"a": {"dtype": "float32", "shape": 3}}}, "features['a'].shape must be a list of positive"),
        ({"data_path": None}, "data_path must be a string, got null"),
        ({"video_path": None}, f"the feature {CAMERA} is a video, but video_path is not given"),
        ({"data_path": "../secret.parquet"}, "data_path leads out of the dataset's folder: '../secret.parquet'"),
        ({"data_path": "/etc/passwd"}, "data_path leads out of the dataset's folder: '/etc/passwd'"),
        ({"video_path": "a/{video_key}/../../../x"}, "video_path leads out of the dataset's folder"),
        ({"data_path": "{chunk}.parquet"}, "data_path has an unknown placeholder {chunk}"),
        ({"data_path": "{chunk_index.__class__}"}, "data_path is not a usable template"),
        ({"data_path": "{0!r}"}, "data_path is not a usable template"),
        ({"data_path": ""}, "data_path is not a usable template"),
        ({"data_path": "{file_index:٣d}"}, "data_path is not a usable template"),
        ({"data_path": "{file_index:999d}"}, "data_path is not a usable template"),
        ({"data_path": "a" * 5000}, "data_path has 5,000 characters, no path has as many"),
        ({"video_path": "{video_key:03d}"}, "video_path gives a name a width in '{video_key:03d}'"),
        ({"fps": float("nan")}, "fps must be positive, got nan"),
        ({"fps": float("inf")}, "fps must be positive, got inf"),
        ({"fps": 10**400}, "fps must be between 0.001 and 1e+06, got 1000"),
        ({"fps": 5e-324}, "fps must be between 0.001 and 1e+06, got 5e-324"),
        ({"total_frames": 10**18}, "total_frames must be at most 100,000,000,000, got 1000000000000000000"),
        ({"total_frames": -1}, "total_frames must be positive, got -1"),
        ({"total_frames": True}, "total_frames must be an integer, got a boolean"),
        ({"total_frames": float("inf")}, "total_frames must be an integer, got inf"),
        ({"total_episodes": 10**9}, "total_episodes must be at most 10,000,000, got 1000000000"),
        ({"chunks_size": 10**30}, "chunks_size must be at most "),
        ({"features": {"a": {"dtype": "int8", "shape": [True]}}}, "features['a'].shape must be a list of positive"),
        (
            {"features": {"a": {"dtype": "int8", "shape": [10**9, 9]}}},
            "features['a'].shape has more than 1,000,000,000",
        ),
        ({"features": {"a": {"dtype": "int8", "shape": [1] * 99}}}, "features['a'].shape has more than 1,000,000,000"),
        ({"features": {"\x1b[2J": {}}}, "features['\\x1b[2J'] is no name: it is too long or has control characters"),
        ({"features": {"a" * 300: {}}}, "features['aaa"),
    ],
)
def test_wrong_info_is_refused(v30, changes, message):
    edit(v30, **changes)
    assert refusal(read_info, v30).message.removeprefix(f"{v30 / 'meta' / 'info.json'}: ").startswith(message)


def test_json_that_is_no_metadata(root):
    path = root / "meta" / "info.json"
    content = path.read_text()
    for text, said in (
        ('{"fps": 30, "fps": 15}', ": the key 'fps' is given twice"),
        ('{"fps": "\\ud83d"}', ": a text has half of a surrogate pair, which is no character"),
        (f'{{"fps": {"9" * 5000}}}', ": a number has too many digits"),
        ('{"a":' * 100_000, ": JSON nested too deeply to be metadata"),
    ):
        path.write_text(text)
        assert refusal(read_info, root).message == f"{path}{said}"
    path.write_text("\ufeff" + content)
    error = refusal(read_info, root)
    assert error.message.startswith(f"{path}, line 1, column 1: not valid JSON (Unexpected UTF-8 BOM")
    subprocess.run(error.hint.removeprefix("Remove the byte order mark: "), shell=True, check=True)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_info(root).total_frames == 498
    # Not a byte of it is on the disk; one gigabyte would have to be read.
    os.truncate(path, 2**30)
    said = f"{path} has 1,073,741,824 bytes, and no metadata has more than 67,108,864"
    assert refusal(read_info, root).message == said


def test_lists_that_do_not_end(v21):
    info, path = read_info(v21), v21 / "meta" / "episodes.jsonl"
    good = path.read_bytes()
    path.write_bytes(b"\r\n".join([*good.splitlines(), b"", b""]))
    assert read_episodes(info).length.tolist() == [221, 277]
    path.write_bytes(good.splitlines(keepends=True)[0] * 2000)
    assert refusal(read_episodes, info).message == f"{path} has more than 1004 lines"
    path.write_bytes(good + b"\n" * 2000)
    assert refusal(read_episodes, info).message == f"{path} has more than 1000 blank lines"
    path.write_bytes(good)
    os.truncate(path, 2**30)
    assert refusal(read_episodes, info).message == f"{path}, line 3 has more than 16,777,216 bytes"
    path.write_bytes(good)
    os.truncate(v21 / "meta" / "tasks.jsonl", 2**30)
    assert " has 1,073,741,824 bytes, more than the 67,108,864 that are read " in refusal(read_episodes, info).message


def test_only_a_newline_ends_a_line(v21):
    path, text = v21 / "meta" / "tasks.jsonl", "Pick\u2028it\x85up."
    path.write_text(json.dumps({"task_index": 0, "task": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_episodes(read_info(v21)).tasks == (text,)


def test_bytes_that_are_no_text_are_placed(v21):
    path = v21 / "meta" / "tasks.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + b'\n{"task_index": 1, "task": "\xff"}\n')
    assert refusal(read_episodes, read_info(v21)).message == f"{path} is not UTF-8 text (byte {len(good) + 28})"


def test_a_pipe_is_not_waited_for(v21):
    path = v21 / "meta" / "info.json"
    path.unlink()
    os.mkfifo(path)
    assert refusal(read_info, v21).message == f"{path} is not a regular file"


def test_v30_numbers_that_are_none(v30):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = v30 / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)

    def refused(name, values):
        column = table.schema.get_field_index(name)
        pq.write_table(table.set_column(column, name, values), path)
        return refusal(read_episodes, read_info(v30)).message.removeprefix(str(path))

    assert refused("length", pa.array([221, np.nan])) == ", row 1: column 'length' is nan"
    assert refused("length", pa.array([221.0, 276.5])) == ", row 1: column 'length' is 276.5, no number of this kind"
    assert refused("length", pa.array([10**18, 1])).startswith(", row 0: column 'length' is 1000000000000000000, no")
    assert refused("length", pa.array([1, 2**64 - 1], pa.uint64())).startswith(" cannot be read as parquet (")
    assert refused("length", pa.array([221, None])) == ": column 'length' must hold a number in each row, got int64"
    assert refused("length", pa.array(["221", "277"])).endswith("must hold a number in each row, got string")
    key = f"videos/{CAMERA}/from_timestamp"
    assert refused(key, pa.array([0, np.inf])) == f", row 1: column {key!r} is inf"
    pq.write_table(table.append_column("length", table["length"]), path)
    assert refusal(read_episodes, read_info(v30)).message == f"{path} has more than one column 'length'"


def test_parquet_bombs_are_not_read(v30):
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Some kilobytes that stand for ten million rows.
    path = v30 / "meta" / "tasks.parquet"
    many = pa.array(np.zeros(10_000_000, np.int64))
    table = pa.table({"task_index": many, "task": pa.DictionaryArray.from_arrays(many.cast(pa.int32()), ["a"])})
    pq.write_table(table.cast(pa.schema({"task_index": pa.int64(), "task": pa.string()})), path)
    said = f"{path} has 10000000 rows, expected at most 1000000"
    assert refusal(read_episodes, read_info(v30)).message == said


def test_missing_key_is_named(v30):
    path = v30 / "meta" / "info.json"
    raw = json.loads(path.read_text())
    del raw["fps"]
    path.write_text(json.dumps(raw))
    assert refusal(read_info, v30).message == f"{path}: fps is missing"


def test_a_camera_named_to_climb_out_is_refused(v30):
    path = v30 / "meta" / "info.json"
    raw = json.loads(path.read_text())
    raw["features"]["../../../x"] = raw["features"].pop(CAMERA)
    path.write_text(json.dumps(raw))
    assert "video_path leads out of the dataset's folder" in refusal(read_info, v30).message


def test_metadata_that_contradicts_itself_is_refused(root):
    edit(root, total_frames=499)
    message = refusal(read_episodes, read_info(root)).message
    assert message.endswith(": the episodes' lengths sum to 498, but info.json says 499 frames")
    edit(root, total_frames=498, total_episodes=3)
    assert refusal(read_episodes, read_info(root)).message.endswith(" lists 2 episodes, but info.json says 3")


def test_damaged_episode_lists_are_refused(v21):
    path = v21 / "meta" / "episodes.jsonl"
    good = path.read_text()
    info = read_info(v21)
    path.write_text(good.splitlines()[0] + '\n{"episode_index": 1,\n')
    assert refusal(read_episodes, info).message.startswith(f"{path}, line 2, column 21: not valid JSON")
    path.write_text(good.replace('"length": 221', '"length": "221"'))
    message = refusal(read_episodes, info).message
    assert "expected an object with the integers episode_index and length a line" in message
    path.write_text(good.replace('"episode_index": 1', '"episode_index": 0'))
    assert refusal(read_episodes, info).message == f"{path} lists episode 0 twice"
    path.write_text(good)
    (v21 / "meta" / "tasks.jsonl").unlink()
    assert refusal(read_episodes, info).message == f"{v21 / 'meta' / 'tasks.jsonl'} is missing"


def test_v30_episodes_that_overlap_are_refused(v30):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = v30 / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("dataset_from_index")
    pq.write_table(table.set_column(column, "dataset_from_index", pa.array([0, 220])), path)
    error = refusal(read_episodes, read_info(v30))
    assert error.message.endswith(
        "episode 1 has length 277 and frames 220 to 498, but the episode before it ends at frame 221"
    )
    pq.write_table(table.drop_columns(["length"]), path)
    assert refusal(read_episodes, read_info(v30)).message == f"{path}: no column 'length'"
    path.write_bytes(b"PAR1 nonsense")
    assert f"{path} cannot be read as parquet (13 bytes): " in refusal(read_episodes, read_info(v30)).message
    path.unlink()
    assert refusal(read_episodes, read_info(v30)).message == f"{v30 / 'meta' / 'episodes'} has no parquet file"


def test_missing_files_are_listed(root):
    info = read_info(root)
    episodes = read_episodes(info)
    assert missing_files(info, episodes, [CAMERA]) == []
    data = info.data_file(0, 0)
    video = info.video_file(CAMERA, 0, int(episodes.videos[CAMERA].file[-1]))
    data.write_text(LFS_POINTER)
    video.unlink()
    assert missing_files(info, episodes, [CAMERA]) == [data, video]
    assert missing_files(info, episodes, []) == [data]
    data.write_text("")
    assert missing_files(info, episodes, []) == [data]
