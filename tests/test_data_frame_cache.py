"""The frame cache: the same bytes as without it, made once, never read where it is not what it should be."""

import dataclasses
import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from recoded import CAMERA, V21, V30, edit_info, encode, pictures, small_copy, v21_video
from test_data_dataset import assert_same

from preflight.config.schema import DataConfig, ModelConfig
from preflight.data import frame_build, frame_cache
from preflight.data.dataset import SampleDataset
from preflight.data.demo import ensure_demo_dataset
from preflight.data.frame_store import CHECKSUMS, DESCRIPTION, DONE, FRAMES, PARTIAL, stored_in, verify_all
from preflight.data.loader import BatchLoader
from preflight.errors import DataError, PreflightError

SLOT = "base_0_rgb"
FRAME = 224 * 224 * 3


def opened(root, cache="disk", *, folder=None, camera=CAMERA, **changes):
    cameras = changes.pop("cameras", {SLOT: camera})
    config = DataConfig(root=root, cameras=cameras, cache=cache, cache_dir=folder, **changes)
    return SampleDataset(config, ModelConfig())


def prepared(root, folder, say=lambda line: None, **changes):
    dataset = opened(root, folder=folder, **changes)
    dataset.frame_cache.prepare(say)
    assert dataset.frame_cache.is_open
    return dataset


def state(dataset):
    (one,) = dataset.frame_cache.states()
    return one


def assert_same_pictures(left, right, indices):
    for one, other in zip(left.__getitems__(indices), right.__getitems__(indices), strict=True):
        assert_same(one, other)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return small_copy(V21, tmp_path_factory.mktemp("small") / "g1")


@pytest.fixture
def root(small, tmp_path):
    return Path(shutil.copytree(small, tmp_path / "g1"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept" / "frames"


@pytest.mark.parametrize("root", [V30, V21], ids=["v3.0", "v2.1"])
@pytest.mark.parametrize("resize", ["swscale", "pil"])
def test_samples_are_those_without_it_to_the_bit(root, resize, folder):
    plain = opened(root, "off", resize=resize)
    order = np.random.default_rng(0).permutation(498)[:90].tolist()
    order += [order[0], 0, 497]
    on_disk, in_memory = prepared(root, folder, resize=resize), opened(root, "memory", resize=resize)
    assert_same_pictures(plain, on_disk, order)
    assert_same_pictures(plain, in_memory, order)  # decoded
    assert_same_pictures(plain, in_memory, order)  # kept
    assert_same(plain[300], on_disk[300])
    assert [name for name, _ in on_disk.batch_stages()] == ["read", "transform"]
    assert [name for name, _ in plain.batch_stages()] == ["decode", "transform"]
    (stored,) = stored_in(folder)
    assert (stored.folder / FRAMES).stat().st_size == 498 * FRAME
    verify_all(stored.folder)
    assert not any(path.name.startswith(".") for path in folder.iterdir())


def test_all_cameras_of_the_demo_through_workers(folder):
    root = ensure_demo_dataset()
    plain = opened(root, "off")
    cameras = dict(zip(("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"), plain.info.camera_keys, strict=True))
    plain = opened(root, "off", cameras=cameras, shuffle_window=2)
    made = prepared(root, folder, cameras=cameras, shuffle_window=2)
    kept = opened(root, "memory", cameras=cameras, shuffle_window=2)
    assert len(stored_in(folder)) == 3

    def batches(dataset, workers, start):
        with BatchLoader(dataset, batch_size=4, num_workers=workers, seed=3, start_batch=start) as loader:
            return [next(loader) for _ in range(6)]

    expected = batches(plain, 0, 2)
    for dataset in (made, kept, kept):
        for one, other in zip(batches(dataset, 2, 2), expected, strict=True):
            assert_same(one, other)
    # What a worker has decoded, the next loader and this process find.
    index = int(plain.batch_order(4, 3)(2)[0])
    assert all(frames._have.array[index] for frames in kept._cameras._kept.values())
    pixels = next(iter(kept._cameras._kept.values()))._frames.array[index]
    np.testing.assert_array_equal(pixels, plain[index]["image"]["base_0_rgb"])


def with_pictures_in_parquet(root, camera, damaged=()):
    def png(i):
        buffer = io.BytesIO()
        Image.fromarray(np.stack([np.full((6, 8), (i * k) % 251, np.uint8) for k in (1, 3, 7)], axis=-1)).save(
            buffer, format="png"
        )
        return buffer.getvalue() if i not in damaged else b"no picture"

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    first = 0
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        column = pa.array([{"bytes": png(first + i), "path": None} for i in range(len(table))], kind)
        pq.write_table(table.append_column(camera, column), path, row_group_size=100)
        first += len(table)
    edit_info(root, lambda info: info["features"].update({camera: {"dtype": "image", "shape": [6, 8, 3]}}))


def test_pictures_in_parquet_files(root, folder):
    with_pictures_in_parquet(root, "observation.images.wrist")
    wrist = "observation.images.wrist"
    plain, made = opened(root, "off", camera=wrist), prepared(root, folder, camera=wrist)
    assert_same_pictures(plain, made, [497, 3, 220, 221, 222, 3])
    # The same pictures whatever data.resize says, and so the same cache.
    assert opened(root, folder=folder, camera=wrist, resize="pil").frame_cache.is_open
    path = sorted((root / "data").rglob("*.parquet"))[1]
    os.utime(path, ns=(10**18, 10**18))
    assert state(opened(root, folder=folder, camera=wrist)).state == "stale"


def test_what_is_made_is_told_and_nothing_is_made_twice(root, folder):
    said = []
    made = prepared(root, folder, said.append)
    assert len(said) == 1
    assert said[0].startswith(f"making the frame cache of {CAMERA} in {folder}: 498 frames a camera, 71 MiB (")
    place = state(made).place
    before = (place / FRAMES).stat()
    again = opened(root, folder=folder)
    assert again.frame_cache.is_open
    again.frame_cache.prepare(said.append)
    assert len(said) == 1
    assert (place / FRAMES).stat().st_mtime_ns == before.st_mtime_ns
    counted = []
    frame_build.build_frames(
        place,
        root,
        made._cameras.identity(CAMERA),
        made._cameras,
        rules=frame_build.BuildRules(num_workers=1),
        say=said.append,
        progress=counted.append,
    )
    assert counted == [498]


def test_a_copy_with_its_times_shares_the_cache_and_other_cameras_or_scales_do_not(root, folder, tmp_path):
    prepared(root, folder)
    copy = shutil.copytree(root, tmp_path / "elsewhere" / "g1")
    assert opened(copy, folder=folder).frame_cache.is_open
    assert state(opened(root, folder=folder, resize="pil")).state == "absent"
    prepared(root, folder, resize="pil")
    assert len(stored_in(folder)) == 2


@pytest.mark.parametrize("changed", ["time", "content", "length", "decoder", "task"])
def test_a_cache_of_something_else_is_stale_and_made_anew(root, folder, changed, monkeypatch):
    made = prepared(root, folder)
    first = state(made).place
    if changed == "time":
        os.utime(v21_video(root, 1), ns=(10**18, 10**18))
    elif changed == "content":
        encode(v21_video(root, 1), [255 - picture for picture in pictures(1)])
    elif changed == "length":
        rows = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
        rows[1]["length"] -= 3
        (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        path = sorted((root / "data").rglob("*.parquet"))[1]
        pq.write_table(pq.read_table(path).slice(0, 274), path)
        edit_info(root, lambda info: info.update(total_frames=495))
    elif changed == "decoder":
        monkeypatch.setattr("av.library_versions", {"libavcodec": (99, 1, 0)})
    else:  # what has nothing to do with pictures
        tasks = root / "meta" / "tasks.jsonl"
        tasks.write_text(tasks.read_text().replace("}", ', "note": 1}'))
        assert opened(root, folder=folder).frame_cache.is_open
        return
    dataset = opened(root, folder=folder)
    assert not dataset.frame_cache.is_open
    assert state(dataset).state == "stale"
    wanted = "made with libavcodec" if changed == "decoder" else "the dataset's files have changed since it was made"
    assert wanted in state(dataset).why
    said = []
    dataset.frame_cache.prepare(said.append)
    assert said[0].startswith(f"the frame cache of {CAMERA} is stale and is made anew: ")
    assert_same_pictures(opened(root, "off"), dataset, [0, 221, 300, 494])
    assert not first.exists()  # replaced: caches do not pile up
    assert len(stored_in(folder)) == 1


def damage(place, how):
    with (place / FRAMES).open("r+b") as file:
        if how == "cut":
            file.truncate(498 * FRAME - 1)
        elif how == "zeros":  # as a file system may give after a power cut
            file.truncate(100 * FRAME)
            file.truncate(498 * FRAME)
    if how == "checksums":
        (place / CHECKSUMS).write_bytes(bytes(498 * 4))
    elif how == "no checksums":
        (place / CHECKSUMS).unlink()
    elif how == "description":
        (place / DESCRIPTION).write_text("{")
    elif how == "other description":
        text = (place / DESCRIPTION).read_text()
        (place / DESCRIPTION).write_text(text.replace('"frames": 498', '"frames": 497'))


@pytest.mark.parametrize("how", ["cut", "zeros", "checksums", "no checksums", "description", "other description"])
def test_a_damaged_cache_is_made_anew_and_never_read(root, folder, how):
    made = prepared(root, folder)
    place = state(made).place
    damage(place, how)
    dataset = opened(root, folder=folder)
    assert not dataset.frame_cache.is_open
    assert state(dataset).state == "damaged"
    assert str(place) in state(dataset).why
    said = []
    dataset.frame_cache.prepare(said.append)
    assert said[0].startswith(f"the frame cache of {CAMERA} is damaged and is made anew: {place}")
    assert_same_pictures(opened(root, "off"), dataset, [0, 221, 497])
    assert [path.name for path in folder.iterdir()] == [place.name]


def test_every_frame_is_compared_where_that_is_asked_for(root, folder):
    place = state(prepared(root, folder)).place
    with (place / FRAMES).open("r+b") as file:
        file.seek(123 * FRAME + 77_777)
        file.write(bytes([255 ^ file.read(1)[0]]))
    with pytest.raises(DataError, match="frame 123 does not have its checksum"):
        verify_all(place)


BUILD = """
import sys
from pathlib import Path
from preflight.config.schema import DataConfig, ModelConfig
from preflight.data.dataset import SampleDataset
root, folder = map(Path, sys.argv[1:3])
config = DataConfig(root=root, cameras={"base_0_rgb": "observation.images.cam_high"}, cache="disk", cache_dir=folder)
dataset = SampleDataset(config, ModelConfig())
def progress(done, total):
    print("done", done, flush=True)
    if len(sys.argv) > 3 and done >= int(sys.argv[3]):
        sys.stdin.read()  # stands still until it is killed
dataset.frame_cache.prepare(lambda line: print(line, flush=True), progress)
print("open", dataset.frame_cache.is_open, flush=True)
"""


def builder(root, folder, *words):
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(root), str(folder), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def wait_for(process, sign):
    for line in process.stdout:
        if sign in line:
            return line
    raise AssertionError(f"{sign!r} never came")


def test_a_killed_build_leaves_nothing_that_is_read_and_is_gone_on_with(root, folder):
    process = builder(root, folder, "96")
    wait_for(process, "done 96")
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=15)
    assert not alive
    (partial,) = [one for one in stored_in(folder) if not one.whole]
    done = np.fromfile(partial.folder / DONE, np.uint8)
    assert 96 <= (done == 1).sum() < 498
    dataset = opened(root, folder=folder)
    assert not dataset.frame_cache.is_open
    assert (state(dataset).state, state(dataset).here_bytes > 0) == ("absent", True)
    # One of the frames that were written is not on the disk any more: it is made again.
    with (partial.folder / FRAMES).open("r+b") as file:
        file.seek(40 * FRAME)
        file.write(bytes(FRAME))
    said = []
    dataset.frame_cache.prepare(said.append)
    assert any(line.startswith("going on with") and f": {(done == 1).sum()} of 498 frames" in line for line in said)
    verify_all(state(dataset).place)
    assert_same_pictures(opened(root, "off"), dataset, [*range(0, 498, 7), 40])
    assert [path.name for path in folder.iterdir()] == [state(dataset).place.name]


def test_of_two_processes_one_builds_and_the_other_waits_and_says_so(root, folder):
    first = builder(root, folder, "32")
    wait_for(first, "done 32")
    second = builder(root, folder)
    assert "waiting for it" in wait_for(second, "another process makes")
    first.stdin.close()  # goes on
    assert "True" in wait_for(first, "open")
    rest = second.communicate(timeout=60)[0].splitlines()
    assert (first.wait(60), second.returncode) == (0, 0)
    first.stdout.close()
    assert rest == ["done 498", "open True"]


def test_a_frame_that_does_not_decode_is_named_and_stops_the_build(root, folder):
    with_pictures_in_parquet(root, "wrist", damaged={230, 231, 400})
    dataset = opened(root, folder=folder, camera="wrist")
    with pytest.raises(DataError) as caught:
        dataset.frame_cache.prepare(lambda line: None)
    path = sorted((root / "data").rglob("*.parquet"))[1]
    with pytest.raises(DataError) as plain:
        opened(root, "off", camera="wrist")[230]
    expected = plain.value.message.partition(" (cannot identify")[0]  # what follows names an object's address
    assert caught.value.message.startswith(f"sample 230 cannot be loaded: {expected}")
    assert str(path) in caught.value.message
    assert "data.on_bad_sample=skip" in caught.value.hint
    assert not folder.parent.exists()  # nothing is left, nor the folders on the way


def odd_samples(batch):
    return np.array([229, 230, 400, 1])


def test_frames_that_do_not_decode_are_skipped_as_without_the_cache(root, folder):
    with_pictures_in_parquet(root, "wrist", damaged={230, 231, 400})
    said = []
    made = prepared(root, folder, said.append, camera="wrist", on_bad_sample="skip")
    assert [line.split(" will be")[0] for line in said[1:]] == ["sample 230", "sample 231", "sample 400"]
    assert "cannot be decoded" in said[1]
    plain = opened(root, "off", camera="wrist")
    for dataset in (plain, made, opened(root, "memory", camera="wrist")):
        with pytest.raises(DataError, match=r"row 9: the picture in 'wrist' cannot be decoded"):
            dataset[230]
        told = []
        with BatchLoader(
            dataset, batch_size=4, num_workers=1, order=odd_samples, on_bad_sample="skip", warn=told.append
        ) as loader:
            batch = next(loader)
        assert len(told) == 3
        np.testing.assert_array_equal(batch["image"][SLOT][1], plain[232]["image"][SLOT])
        np.testing.assert_array_equal(batch["image"][SLOT][2], plain[401]["image"][SLOT])
    few = opened(root, folder=folder.parent / "other", camera="wrist", on_bad_sample="skip", max_skipped=2)
    with pytest.raises(DataError, match=r"3 samples cannot be loaded, and max_skipped is 2"):
        few.frame_cache.prepare(lambda line: None)
    assert not (folder.parent / "other").exists()


def test_a_video_that_is_torn_stops_the_build_and_names_file_and_time(root, folder):
    path = v21_video(root, 1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"^sample 221 cannot be loaded: .*episode_000001.mp4"):
        opened(root, folder=folder).frame_cache.prepare(lambda line: None)


def test_a_dataset_that_changes_while_it_is_decoded_makes_no_cache(root, folder):
    with_pictures_in_parquet(root, "wrist")  # of which no single reading notices
    dataset = opened(root, folder=folder, camera="wrist")
    path = sorted((root / "data").rglob("*.parquet"))[0]
    with pytest.raises(DataError, match="has changed while its frames were decoded"):
        dataset.frame_cache.prepare(lambda line: None, lambda done, total: os.utime(path, ns=(done, done)))
    assert not folder.exists()
    changed = opened(root, folder=folder)
    os.utime(v21_video(root, 0), ns=(10**18, 10**18))
    with pytest.raises(DataError, match="was written to again since the run opened its dataset"):
        changed.frame_cache.prepare(lambda line: None)


def test_a_run_reads_on_in_the_cache_it_has_opened_whatever_becomes_of_it(root, folder):
    made, plain = prepared(root, folder), opened(root, "off")
    expected = plain.__getitems__([0, 250, 497])
    v21_video(root, 0).unlink()
    shutil.rmtree(folder)
    # As a worker that is started now: it maps the file that the dataset holds open.
    for one, other in zip(pickle.loads(pickle.dumps(made)).__getitems__([0, 250, 497]), expected, strict=True):
        assert_same(one, other)


class FullDisk(frame_build.Pieces):
    """The disk fills up in the middle."""

    def _written(self, descriptor, some):
        if some.start >= 256:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super()._written(descriptor, some)


def test_a_disk_that_fills_up_or_is_too_small_leaves_nothing(root, folder, monkeypatch):
    dataset = opened(root, folder=folder)
    with monkeypatch.context() as patched:
        patched.setattr(frame_build, "Pieces", FullDisk)
        with pytest.raises(PreflightError, match="^The disk filled up while .*swscale-.* was written") as caught:
            dataset.frame_cache.prepare(lambda line: None)
    assert caught.value.exit_code == 3
    assert not folder.parent.exists()
    monkeypatch.setattr(frame_cache, "free_bytes", lambda place: 1 << 20)
    with pytest.raises(PreflightError) as caught:
        dataset.frame_cache.prepare(lambda line: None)
    assert caught.value.message == f"the frame cache would take 71 MiB, and 1 MiB are free in {folder}"
    assert "data.cache_dir" in caught.value.hint
    assert not folder.parent.exists()


def test_a_folder_that_cannot_be_written_is_refused(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="cannot be written: a part of the path is a file"):
        opened(root, folder=tmp_path / "file" / "frames").frame_cache.prepare(lambda line: None)
    with pytest.raises(PreflightError, match="71 MiB, and 0 MiB are free in /proc/preflight-frames"):
        opened(root, folder=Path("/proc/preflight-frames")).frame_cache.prepare(lambda line: None)


def test_a_cache_in_memory_is_refused_where_there_is_none(root, monkeypatch):
    here = frame_cache.available_memory()
    monkeypatch.setattr(
        frame_cache, "available_memory", lambda: dataclasses.replace(here, available_bytes=50 << 20, source="a test")
    )
    with pytest.raises(PreflightError) as caught:
        opened(root, "memory").frame_cache.prepare(lambda line: None)
    assert caught.value.message == "the frame cache in memory would take 71 MiB, and 50 MiB are available (a test)"
    monkeypatch.setattr(frame_cache, "available_memory", lambda: here)
    opened(root, "memory").frame_cache.prepare(lambda line: None)


def test_a_process_that_reads_the_cache_does_not_grow_by_it(root, folder):
    """Both caches: what is mapped stays below a bound, and what it holds is still right afterwards."""
    plain, kept = opened(root, "off"), opened(root, "memory")
    made = prepared(root, folder)
    for dataset in (made, kept):
        frames = dataset._cameras._kept[CAMERA]
        dataset.__getitems__(list(range(498)))
        seen = [0]
        for start in range(0, 480, 16):
            dataset.__getitems__(list(range(start, start + 16)))
            seen.append(resident(frames._frames.array))
        assert max(seen) < 48 << 20
        assert_same_pictures(plain, dataset, [0, 300, 497])


def resident(array):
    """Bytes of an array's mapping in this process's page table."""
    start = array.__array_interface__["data"][0]
    for block in Path("/proc/self/smaps").read_text().split("VmFlags")[:-1]:
        lines = [line for line in block.splitlines() if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]]
        if lines and int(lines[-1].split("-")[0], 16) == start:
            return next(int(line.split()[1]) << 10 for line in block.splitlines() if line.startswith("Rss:"))
    raise AssertionError("no such mapping")


def test_workers_that_fill_the_same_memory_at_once_agree(root):
    kept, plain = opened(root, "memory"), opened(root, "off")
    order = list(range(60))
    threads = [threading.Thread(target=kept.__getitems__, args=(order,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_pictures(plain, kept, order)


def test_nothing_stays_in_shared_memory_when_all_are_killed(root):
    before = set(os.listdir("/dev/shm"))
    code = BUILD.split("def progress", maxsplit=1)[0].replace('cache="disk"', 'cache="memory"') + (
        "from preflight.data.loader import BatchLoader\n"
        "loader = BatchLoader(dataset, batch_size=4, num_workers=2)\n"
        "next(loader)\nprint('loaded', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root), "unused"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    wait_for(process, "loaded")
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 3  # two workers, and the server that they are forked from
    for worker in workers:
        worker.kill()
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=15)
    assert not alive
    assert set(os.listdir("/dev/shm")) <= before


def test_delete_removes_this_datasets_caches_alone(root, folder, tmp_path):
    other = shutil.copytree(root, tmp_path / "other")
    os.utime(v21_video(other, 0), ns=(10**18, 10**18))
    made = prepared(root, folder)
    prepared(other, folder)
    partial = folder / f".g1--x{PARTIAL}"
    shutil.copytree(state(made).place, partial)
    removed = made.frame_cache.delete()
    assert {path for path, _ in removed} == {state(made).place, partial}
    assert [one.description["dataset"] for one in stored_in(folder)] == [str(other)]
