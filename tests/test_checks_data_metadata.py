"""`data.metadata`: silent on real data; each damage is found, with the file and the episode named."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from healthy import EXAMPLE, context, outcome_of, run_all, spoken

from checks import CHECKLIST, data_metadata
from preflight.errors import DataError

V30 = Path(EXAMPLE).parent / "data" / "g1"
V21 = Path(__file__).parent / "data" / "g1_v21"
CAMERA = "observation.images.cam_high"
WRIST = "observation.images.cam_wrist"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
TIMESTAMPS = ("data.present", "data.version", "data.metadata")  # what it requires
OPENPI = {"stack": "openpi", "formats": ("v2.0", "v2.1", "v3.0")}


def copied(source, tmp_path, name="set"):
    """Hard links to the videos, whose content this check does not look at; copies of all else."""
    root = tmp_path / name

    def copy(source, target):
        return os.link(source, target) if source.endswith(".mp4") else shutil.copyfile(source, target)

    return Path(shutil.copytree(source, root, copy_function=copy))


@pytest.fixture(params=[V30, V21], ids=["v30", "v21"])
def root(request, tmp_path):
    return copied(request.param, tmp_path)


@pytest.fixture
def v30(tmp_path):
    return copied(V30, tmp_path, "v30")


@pytest.fixture
def v21(tmp_path):
    return copied(V21, tmp_path, "v21")


def outcome(root, **facts):
    checked = context(f"data.root={root}")
    checked.run.facts = dataclasses.replace(checked.run.facts, **facts)
    return outcome_of("data.metadata", checked)


def the_only_problem(root, status="fail", **facts):
    found = outcome(root, **facts)
    assert (found.status, found.evidence) == (status, ()), (found.summary, found.evidence)
    return found.summary.replace(f"{root}/", "")


def edit_info(root, **changes):
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_table(path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, path)


def first_data(root):
    return sorted((root / "data").rglob("*.parquet"))[0]


def first_video(root):
    return sorted((root / "videos").rglob("*.mp4"))[0]


@pytest.mark.parametrize("source", [V30, V21], ids=["v30", "v21"])
@pytest.mark.parametrize("facts", [{}, OPENPI], ids=["native", "openpi"])
def test_real_data_are_silent(source, facts):
    found = outcome(source, **facts)
    assert found.status == "pass"
    assert found.summary.startswith("2 episodes, 498 frames, 1 camera(s): the metadata agree with each other and")
    assert found.measured == {"episodes": 2, "frames": 498, "problems": 0, "untidy": 0, "missing_files": 0}


def test_a_path_with_spaces_and_other_letters_is_read(tmp_path):
    assert outcome(copied(V21, tmp_path, "Übung 1 – données 数据")).status == "pass"


def test_the_hubs_links_out_of_the_folder_are_followed(v21, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate([*v21.rglob("*.parquet"), *v21.rglob("*.mp4"), *v21.rglob("*.jsonl")]):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert outcome(v21).status == "pass"


def test_without_a_dataset_it_says_so():
    checked = context()
    checked.run.source = lambda: None
    assert data_metadata.CHECK.run(checked).summary == "samples are made up without a dataset: it has no metadata"


def test_progress_is_told(v21):
    told = []
    checked = context(f"data.root={v21}", progress=lambda *what: told.append(what))
    assert outcome_of("data.metadata", checked).status == "pass"
    assert told[-1] == ("files", 4, 4)


def test_everything_is_listed_at_once(v21):
    first_video(v21).unlink()
    first_data(v21).write_text(LFS_POINTER)
    (v21 / "data" / "chunk-000" / "episode_000009.parquet").write_bytes(first_data(V21).read_bytes())
    edit_info(v21, total_chunks=7, total_frames=499)
    found = outcome(v21)
    assert found.measured == {"episodes": 2, "frames": 499, "problems": 4, "untidy": 1, "missing_files": 2}
    assert found.summary.endswith("the episodes' lengths sum to 498, but info.json says 499 frames; and 4 more")
    named = [line.replace(f"{v21}/", "").split(" but")[0].rstrip(",") for line in found.evidence[1:]]
    assert named == [
        "data/chunk-000/episode_000000.parquet is a Git LFS pointer, not the content (episode 0)",
        f"videos/chunk-000/{CAMERA}/episode_000000.mp4 is missing (episode 0)",
        "data/chunk-000/episode_000009.parquet is named by no episode",
        "meta/info.json: total_chunks is 7",
    ]


def test_files_that_are_no_files(root):
    # F14, F21
    for damage, said in (
        (lambda path: None, "is missing"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.mkdir(), "is a folder, not a file"),
        (lambda path: path.write_text(LFS_POINTER), "is a Git LFS pointer, not the content"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read (Too many levels of symbolic links)"),
    ):
        for find in (first_data, first_video):
            path = find(root)
            path.rename(root / "kept")
            damage(path)
            whose = "episode 0" if "episode" in path.name else "episodes 0, 1"
            assert the_only_problem(root) == f"{path.relative_to(root)} {said} ({whose})"
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            (root / "kept").rename(path)
    assert outcome(root).status == "pass"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(v30):
    first_video(v30).chmod(0)
    assert "cannot be read (Permission denied) (episodes 0, 1)" in the_only_problem(v30)


def test_parquet_that_is_none(root):
    path = first_data(root)
    content = path.read_bytes()
    name = path.relative_to(root)
    for damaged in (content[:-1000], b"\0" * 5000):
        path.write_bytes(damaged)
        assert the_only_problem(root).startswith(f"{name} cannot be read as parquet ({len(damaged)} bytes): ")
    path.write_bytes(content[1000:])
    assert the_only_problem(root) == f"{name} is shorter than its footer says: a part of it is missing"


def test_rows_that_are_not_the_episodes(root):
    path = first_data(root)
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 5), path)
    has, whose, frames = (216, "episode 0", 221) if root.name and len(table) == 221 else (493, "episodes 0, 1", 498)
    assert the_only_problem(root) == (
        f"{path.relative_to(root)} has {has} rows, but {whose} in it must have {frames} frames"
    )


def test_frames_of_another_episode(v21):
    # F20: the second episode's file copied over the first's, cut to its length.
    first, second = (v21 / "data" / "chunk-000" / f"episode_00000{i}.parquet" for i in (0, 1))
    pq.write_table(pq.read_table(second).slice(0, 221), first)
    assert the_only_problem(v21) == (
        "data/chunk-000/episode_000000.parquet, rows 0 to 220 (episode 0): episode_index goes from 1 to 1, "
        "expected 0 to 0"
    )


def test_row_groups_are_looked_at_one_by_one(v30):
    path = first_data(v30)
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=100)
    assert outcome(v30).status == "pass"
    number = table["episode_index"].to_numpy().copy()
    number[350] = 0
    at = table.schema.get_field_index("episode_index")
    pq.write_table(table.set_column(at, "episode_index", pa.array(number)), path, row_group_size=100)
    assert the_only_problem(v30) == (
        "data/chunk-000/file-000.parquet, rows 300 to 399 (episode 1): episode_index goes from 0 to 1, expected 1 to 1"
    )


def test_an_index_that_starts_anew_is_left_to_data_timestamps(root):
    for path in (root / "data").rglob("*.parquet"):
        edit_table(path, index=pq.read_table(path)["frame_index"])
    assert outcome(root).status == "pass"
    checked = context(f"data.root={root}")
    results = run_all(checked, without={check.id for check in CHECKLIST} - {*TIMESTAMPS, "data.timestamps"})
    assert spoken(results) == {"data.timestamps"}
    assert "index from 0 through all episodes" in results["data.timestamps"].outcome.hint.text


def test_without_episode_index_it_is_index_that_tells(v30):
    path = first_data(v30)
    info = json.loads((v30 / "meta" / "info.json").read_text())
    del info["features"]["episode_index"]
    edit_info(v30, features=info["features"])
    table = pq.read_table(path).drop_columns(["episode_index"])
    pq.write_table(table.set_column(table.schema.get_field_index("index"), "index", table["frame_index"]), path)
    assert the_only_problem(v30).endswith("index goes from 0 to 276, expected 0 to 497")


def test_columns_that_are_not_as_listed(root):
    path = first_data(root)
    name, content = path.relative_to(root), path.read_bytes()
    table = pq.read_table(path)
    rows = len(table)

    def broken_by(**columns):
        path.write_bytes(content)
        edit_table(path, **columns)
        return the_only_problem(root).removeprefix(f"{name}: ")

    short = pa.array([[0.0] * 25] * rows, pa.list_(pa.float32()))
    assert broken_by(action=short) == (
        f"column 'action' has {25 * rows} values in {rows} rows, but info.json gives it the shape [26]"
    )
    scalar = pa.array(np.zeros(rows, np.float32))
    assert broken_by(action=scalar) == "column 'action' holds float, but info.json gives it the shape [26]"
    words = pa.array([["a"] * 26] * rows)
    assert broken_by(action=words) == "column 'action' holds string, but info.json says float32"
    path.write_bytes(content)
    pq.write_table(table.drop_columns(["action"]), path)
    assert the_only_problem(root) == f"{name}: no column 'action', which info.json lists"
    # Readers cast it, or pass it over.
    pq.write_table(table, path)
    edit_table(path, timestamp=table["timestamp"].cast(pa.float64()))
    said = f"{name}: column 'timestamp' holds double, but info.json says float32"
    assert the_only_problem(root, "warn") == said
    pq.write_table(table.append_column("extra", table["index"]), path)
    assert the_only_problem(root, "warn") == f"{name}: info.json does not list the column 'extra'"


def test_matrices_fit_their_shape(v30):
    path = first_data(v30)
    action = pq.read_table(path)["action"].to_pylist()
    nested = pa.array([[row[:13], row[13:]] for row in action], pa.list_(pa.list_(pa.float32())))
    edit_table(path, action=nested)
    assert the_only_problem(v30).startswith("data/chunk-000/file-000.parquet: column 'action' holds list<")
    info = json.loads((v30 / "meta" / "info.json").read_text())
    info["features"]["action"]["shape"] = [2, 13]
    edit_info(v30, features=info["features"])
    assert outcome(v30).status == "pass"


def test_stray_parquet_files(root):
    # F20: LeRobot's reader takes their rows for frames.
    stray = root / "data" / "chunk-000" / "copy of it.parquet"
    shutil.copyfile(first_data(root), stray)
    assert the_only_problem(root) == (
        "data/chunk-000/copy of it.parquet is named by no episode, but LeRobot's reader takes what is there for frames"
    )


def test_strays_that_lerobot_passes_over(v21, v30):
    for root, names in ((v21, ("data/.cache/x.parquet", "data/__old/x.parquet")), (v30, ("data/.cache/a/x.parquet",))):
        for name in (*names, "data/README.md", "data/.gitattributes", "data/.x.parquet", ".git/x.parquet", "x.parquet"):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(first_data(V21).read_bytes())
        assert outcome(root).status == "pass"


def test_each_format_has_its_own_strays(v21, v30):
    for root in (v21, v30):
        (root / "data" / "old").mkdir()
        shutil.copyfile(first_data(root), root / "data" / "old" / "x.parquet.bak")
        (root / "data" / "a" / "b").mkdir(parents=True)
        shutil.copyfile(first_data(root), root / "data" / "a" / "b" / "x.parquet")
    assert outcome(v21).measured["problems"] == 2
    assert the_only_problem(v30, "warn") == "data/a/b/x.parquet is named by no episode"
    (v30 / "data" / "chunk-000" / "._file-000.parquet").write_bytes(b"AppleDouble")
    assert outcome(v30).measured["problems"] == 1


def test_notes_among_the_data_stop_lerobots_reader_of_v21(v21):
    (v21 / "data" / "notes.txt").write_text("recorded on a Monday")
    for status, facts in (("warn", {}), ("fail", OPENPI)):
        assert the_only_problem(v21, status, **facts).startswith("data/notes.txt is named by no episode")


def test_strays_are_counted_by_folder(root):
    for number in range(3):
        shutil.copyfile(first_data(root), root / "data" / "chunk-000" / f"more-{number}.parquet")
    assert the_only_problem(root).startswith(
        f"data/chunk-000/more-0.parquet and 2 more file(s) in {root / 'data' / 'chunk-000'} are named".replace(
            f"{root}/", ""
        )
    )


def test_stray_videos_are_untidy(root):
    stray = first_video(root).with_name("take 2.mp4")
    stray.write_bytes(b"0")
    assert the_only_problem(root, "warn") == f"{stray.relative_to(root)} is named by no episode"


def test_a_link_to_the_folder_above_ends(root):
    (root / "data" / "chunk-000" / "loop").symlink_to(root / "data")
    assert outcome(root).status == "pass"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (((0, 221), (0, 277)), "lists episode 0 twice"),
        (((0, 221), (1, 278)), "the episodes' lengths sum to 499, but info.json says 498 frames"),
        (((0, 221), (1, 0)), "episode 1 has length 0 and frames 221 to 221"),
        (((0, 221), (1, -5)), "episode 1 has length -5"),
        (((0, 221),), "lists 1 episodes, but info.json says 2"),
        (((0, 221), (1, 277), (2, 9)), "lists 3 episodes, but info.json says 2"),
        (((0, 221), (1, 10**30)), "no dataset has a number as large as in {'episode_index': 1, 'length': 1"),
    ],
)
def test_episode_lists_that_contradict_themselves(v21, lines, said):
    path = v21 / "meta" / "episodes.jsonl"
    rows = [json.dumps({"episode_index": number, "length": length}) for number, length in lines]
    path.write_text("\n".join(rows))
    found = outcome(v21)
    assert found.status == "fail"
    assert found.summary.startswith(str(path))
    assert said in found.summary


def test_a_gap_in_the_numbers_is_what_lerobot_stumbles_over(v21):
    path = v21 / "meta" / "episodes.jsonl"
    path.write_text(path.read_text().replace('"episode_index": 1', '"episode_index": 5'))
    edit_table(v21 / "data" / "chunk-000" / "episode_000001.parquet", episode_index=pa.array([5] * 277))
    for file in [*v21.rglob("episode_000001.*")]:
        file.rename(file.with_stem("episode_000005"))
    native, lerobot = outcome(v21), outcome(v21, **OPENPI)
    assert (native.status, lerobot.status) == ("warn", "fail")
    listed = f"{path} lists episode 5, but the 2 that info.json gives are 0 to 1"
    by_position = "LeRobot's readers take episodes by their position"
    assert native.evidence == (f"{listed}, and {by_position}", f"{path} does not list episode 1, and {by_position}")


def test_episodes_out_of_order_in_v30(v30):
    path = v30 / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(path).take([1, 0]), path)
    said = "meta/episodes, row 1: the episodes are not in order, and LeRobot's readers take episodes by their position"
    assert the_only_problem(v30, "warn") == said
    assert the_only_problem(v30, **OPENPI) == said


def test_tasks(v21):
    path = v21 / "meta" / "tasks.jsonl"
    first = path.read_text().strip()

    def listed(*rows):
        path.write_text("\n".join([first, *(json.dumps({"task_index": i, "task": text}) for i, text in rows)]))
        edit_info(v21, total_tasks=len(rows) + 1)

    text = json.loads(first)["task"]
    listed((0, "Wave."))
    said = "meta/tasks.jsonl lists task 0 as 'Pick up the yellow bottle on the table.' and as 'Wave.'"
    assert the_only_problem(v21) == said
    listed((0, text))
    assert the_only_problem(v21, "warn") == "meta/tasks.jsonl lists task 0 twice"
    listed((1, text))
    assert the_only_problem(v21, "warn") == f"meta/tasks.jsonl: tasks 0 and 1 have one text, {text!r}"
    listed((-1, "Wave."))
    assert the_only_problem(v21).startswith("meta/tasks.jsonl: task_index must be between 0 and 999999, got -1")
    listed((1, "Wave."), (7, "Sit."))
    assert outcome(v21).status == "pass"  # which tasks frames have is another check's question


def test_tasks_by_row_in_v30(v30):
    path = v30 / "meta" / "tasks.parquet"
    pq.write_table(pa.table({"task_index": [1, 0], "__index_level_0__": ["Wave.", "Sit."]}), path)
    edit_info(v30, total_tasks=2)
    said = the_only_problem(v30, **OPENPI)
    assert said.startswith("meta/tasks.parquet, row 0: task_index is 1, and LeRobot's reader of v3.0 takes tasks by")
    assert outcome(v30).status == "warn"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"total_chunks": 3}, "total_chunks is 3, but there are 1"),
        ({"total_videos": "2"}, "total_videos is '2', but there are 2"),
        ({"total_tasks": 4}, "total_tasks is 4, but there are 1"),
        ({"splits": {"train": "0:1"}}, "splits end at episode 1, but there are 2 episodes"),
        ({"splits": {"train": "0:2", "test": "1:2"}}, "the split 'test', 1:2, overlaps another up to episode 1"),
        ({"splits": {"train": "1:2"}}, "the split 'train', 1:2, leaves out the episodes from 0"),
        ({"splits": {"train": "all"}}, "the split 'train' must be like '0:50', got 'all'"),
        ({"splits": ["train"]}, "splits must be an object like {'train': '0:50'}, got ['train']"),
    ],
)
def test_counts_and_splits_are_merely_untidy(v21, changes, said):
    edit_info(v21, **changes)
    assert the_only_problem(v21, "warn") == f"meta/info.json: {said}"


def with_a_second_camera(root):
    features = json.loads((root / "meta" / "info.json").read_text())["features"]
    features[WRIST] = features[CAMERA]
    edit_info(root, features=features)
    if (root / "meta" / "info.json").read_text().count('"total_videos"'):
        edit_info(root, total_videos=4)
    for path in (root / "meta" / "episodes").rglob("*.parquet"):
        table = pq.read_table(path)
        for name in [name for name in table.column_names if name.startswith(f"videos/{CAMERA}/")]:
            table = table.append_column(name.replace(CAMERA, WRIST), table[name])
        pq.write_table(table, path)
    for folder in sorted((root / "videos").rglob(CAMERA)):
        shutil.copytree(folder, folder.with_name(WRIST))


def test_videos_of_a_camera_that_the_run_does_not_use(root):
    with_a_second_camera(root)
    assert (outcome(root).status, outcome(root, **OPENPI).status) == ("pass", "pass")
    for folder in list((root / "videos").rglob(WRIST)):
        shutil.rmtree(folder)
    videos = len(list((root / "videos").rglob("*.mp4")))  # the other camera has as many
    said, whose = the_only_problem(root, "warn"), "episodes 0, 1" if videos == 1 else "episode 0"
    others = "" if videos == 1 else "; so it is with 2 videos of this camera"
    assert WRIST in said
    assert said.endswith(f"is missing ({whose}){others}")
    found = outcome(root)
    assert found.hint.text == f"This run does not use the camera {WRIST}: nothing that it reads depends on it."
    assert found.measured["missing_files"] == 0
    assert outcome(root, **OPENPI).measured["problems"] == videos  # LeRobot's reader opens all
    assert uses(root, CAMERA, WRIST).status == "fail"
    assert uses(root).status == "fail"  # it cannot be told


def uses(root, *cameras):
    """The outcome for a run that uses these cameras, or of which it cannot be told."""
    checked = context(f"data.root={root}")

    def answer():
        if not cameras:
            raise DataError("the dataset lacks what the transforms ask for")
        return cameras

    checked.run.cameras = answer
    return data_metadata.CHECK.run(checked)


def test_what_nothing_depends_on_is_said_to_be_so(v21):
    edit_info(v21, total_chunks=3)
    assert outcome(v21).hint.text == "nothing that this run reads depends on it"
    edit_info(v21, total_chunks=1, total_frames=499)
    assert outcome(v21).hint.text == "repair the metadata, or fetch the dataset again"


def test_chunks_size_is_what_lerobot_needs(v21):
    info = json.loads((v21 / "meta" / "info.json").read_text())
    del info["chunks_size"]
    (v21 / "meta" / "info.json").write_text(json.dumps(info))
    said = "meta/info.json: chunks_size is missing, which LeRobot's reader of format v2.x needs"
    assert the_only_problem(v21, "warn") == said
    assert the_only_problem(v21, **OPENPI) == said
    assert outcome(v21, **OPENPI).hint.text == 'Add "chunks_size": 1000 to info.json.'


def test_missing_statistics_say_whether_anything_is_to_be_done(v21, v30):
    (v30 / "meta" / "stats.json").unlink()
    (v21 / "meta" / "episodes_stats.jsonl").unlink()
    without = "Nothing is needed: only LeRobot's reader opens it, and it does without."
    assert (outcome(v30).hint.text, outcome(v30, **OPENPI).hint.text) == (without, without)
    assert outcome(v21).hint.text.startswith("This run does not read it.")
    assert outcome(v21, **OPENPI).hint.text.endswith("fetch the dataset again, or its folder meta/ alone.")


@pytest.mark.parametrize(
    ("rate", "shown"), [(15, "15"), (10**400, "1000"), (float("nan"), "nan"), ("30", "'30'"), (True, "True")]
)
def test_mixed_rates(root, rate, shown):
    features = json.loads((root / "meta" / "info.json").read_text())["features"]
    features[CAMERA]["info"]["video.fps"] = rate
    edit_info(root, features=features)
    said = the_only_problem(root, "warn")
    assert said.startswith(f"meta/info.json: features['{CAMERA}'].info['video.fps'] is {shown}")
    assert said.endswith(", but the dataset's fps is 30")


def test_statistics_that_only_lerobot_needs(v21):
    path = v21 / "meta" / "episodes_stats.jsonl"
    content = path.read_text()
    path.write_text(content[:-100])
    assert outcome(v21).status == "pass"
    assert the_only_problem(v21, **OPENPI).startswith("meta/episodes_stats.jsonl, line 2, column ")
    path.write_text(content.splitlines()[0])
    assert the_only_problem(v21, **OPENPI) == "meta/episodes_stats.jsonl has 1 lines, but info.json says 2 episodes"
    path.unlink()
    assert the_only_problem(v21, "warn") == "meta/episodes_stats.jsonl is missing"
    # Its reader asks the Hub for it.
    assert the_only_problem(v21, **OPENPI) == "meta/episodes_stats.jsonl is missing"


def test_v20_has_one_file_of_statistics(v21):
    edit_info(v21, codebase_version="v2.0")
    (v21 / "meta" / "episodes_stats.jsonl").unlink()
    assert the_only_problem(v21, "warn", **OPENPI) == "meta/stats.json is missing"
    (v21 / "meta" / "stats.json").write_text("{}")
    assert outcome(v21, **OPENPI).status == "pass"
