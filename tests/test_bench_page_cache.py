import mmap
import os
import sys
from pathlib import Path

import pytest

import bench
from bench import page_cache
from bench.disk import Mount, mount_of, mount_of_files, read_bytes
from bench.known_datasets import Latency
from bench.page_cache import dataset_files, drop, resident_share, total_bytes
from preflight.errors import UsageError

DATASET = Path(__file__).parent.parent / "examples" / "data" / "g1"
MOUNTS = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:40 / /data rw,relatime shared:7 - nfs4 server:/export rw,vers=4.2
41 27 0:41 / /data/local\\040disk rw - xfs /dev/nvme0n1p1 rw
42 27 0:42 / /bucket rw - fuse.gcsfuse lab-data rw
43 27 0:43 / /merged rw - fuse.mergerfs a:b rw
44 27 0:44 / /bucket rw - ext4 /dev/vdb rw
"""
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """32 pages of which no other process has any mapped."""
    path = tmp_path / "videos" / "recording.mp4"
    path.parent.mkdir()
    path.write_bytes(os.urandom(32 * mmap.PAGESIZE - 100))
    return path


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTS)
    return tmp_path / "proc"


def droppable(path: Path) -> bool:
    mount = mount_of(path)
    return mount is not None and mount.kind not in ("tmpfs", "ramfs", "overlay") and not mount.is_network


@on_linux
def test_what_was_just_written_is_resident(recording: Path) -> None:
    assert resident_share([recording]) == 1.0


@on_linux
def test_dropped_pages_are_gone_and_come_back_when_they_are_read(recording: Path) -> None:
    if not droppable(recording):
        pytest.skip("the temporary folder is not on a disk")
    drop([recording])
    assert resident_share([recording]) == 0.0
    with recording.open("rb") as file:
        assert file.read(1)
    after_a_byte = resident_share([recording])
    assert after_a_byte is not None
    assert after_a_byte > 0  # with what the kernel reads ahead
    recording.read_bytes()
    assert resident_share([recording]) == 1.0


@on_linux
def test_older_kernels_are_asked_in_another_way(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "_cachestat", lambda descriptor: None)
    assert resident_share([recording]) == 1.0
    if droppable(recording):
        drop([recording])
        assert resident_share([recording]) == 0.0


def test_files_that_are_not_there_count_nothing(recording: Path, tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.touch()
    assert resident_share([missing, empty]) is None
    assert resident_share([]) is None
    drop([missing, empty])
    assert total_bytes([missing, recording]) == recording.stat().st_size


def test_files_of_a_dataset_are_its_data_and_videos() -> None:
    names = [str(path.relative_to(DATASET)) for path in dataset_files(DATASET)]
    assert names == [
        "data/chunk-000/file-000.parquet",
        "videos/observation.images.cam_high/chunk-000/file-000.mp4",
    ]


@pytest.mark.parametrize(
    ("path", "source", "is_network"),
    [
        ("/home/user/data", "/dev/vda", False),
        ("/data/set", "server:/export", True),
        ("/database", "/dev/vda", False),
        ("/data/local disk/set", "/dev/nvme0n1p1", False),
        ("/merged/set", "a:b", False),
        ("/bucket/set", "/dev/vdb", False),
    ],
)
def test_the_file_system_of_a_path(mounts: Path, path: str, source: str, is_network: bool) -> None:
    mount = mount_of(Path(path), proc=mounts)
    assert mount is not None
    assert (mount.source, mount.is_network) == (source, is_network)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "lustre", "ceph", "beegfs", "gpfs", "fuse.sshfs", "fuse"])
def test_network_file_systems(kind: str) -> None:
    assert Mount(kind, "somewhere", "/mnt").is_network


def test_a_link_to_a_network_is_found_among_local_files(mounts: Path, tmp_path: Path) -> None:
    link = tmp_path / "file-000.mp4"
    link.symlink_to("/data/elsewhere.mp4")
    mount = mount_of_files([tmp_path / "file-001.mp4", link], proc=mounts)
    assert mount == Mount("nfs4", "server:/export", "/data")
    assert mount_of_files([], proc=mounts) is None
    assert mount_of(tmp_path, proc=tmp_path / "no procfs") is None


def test_bytes_read_are_summed_unless_one_is_not_told(tmp_path: Path) -> None:
    for pid, text in ((7, "rchar: 9\nread_bytes: 4096\n"), (8, "rchar: 9\nread_bytes: 100\n"), (9, "rchar: 9\n")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "io").write_text(text)
    assert read_bytes([7, 8], proc=tmp_path) == 4196
    assert read_bytes([7, 9], proc=tmp_path) is None
    assert read_bytes([7, 10], proc=tmp_path) is None


class Reading(Latency):
    """Every sample reads a part of a file."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(0.001, length=path.stat().st_size // size)
        self.path = path
        self.size = size

    def __getitem__(self, index: int) -> dict:
        with self.path.open("rb") as file:
            file.seek(index * self.size)
            file.read(self.size)
        return super().__getitem__(index)


@on_linux
def test_a_cold_sweep_reads_from_the_disk_in_every_round(tmp_path: Path) -> None:
    path = tmp_path / "recording.bin"
    path.write_bytes(os.urandom(32 << 20))
    if not droppable(path):
        pytest.skip("the temporary folder is not on a disk")
    dataset = Reading(path, 1 << 15)
    few = {"batch_size": 4, "workers": (0,), "max_seconds": 1.6, "rounds": 2, "files": [path]}
    warm, cold = bench.sweep(dataset, **few), bench.sweep(dataset, **few, cold=True)
    assert warm.page_cache is not None
    assert cold.page_cache is not None
    assert (warm.page_cache.cold, warm.page_cache.left_share, warm.page_cache.resident_share) == (False, None, 1.0)
    assert (cold.page_cache.cold, cold.page_cache.left_share) == (True, 0.0)
    if warm.points[0].disk_read_mib_per_s is None or read_bytes([os.getpid()]) is None:
        pytest.skip("nobody may know what processes read here")
    assert warm.points[0].disk_read_mib_per_s == 0.0
    assert cold.points[0].disk_read_mib_per_s > 1


def test_a_cold_sweep_needs_to_know_the_files() -> None:
    with pytest.raises(UsageError, match="The dataset's files are not known"):
        bench.sweep(Latency(0.0), batch_size=4, workers=(0,), cold=True)
