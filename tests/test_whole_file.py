import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from preflight.errors import UsageError
from preflight.whole_file import require_writable, write_whole


def test_a_new_file_and_a_replaced_one_stand_alone(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"first", b"", b"x" * 3_000_000):
        write_whole(path, content)
        assert path.read_bytes() == content
        assert os.listdir(tmp_path) == ["a.json"]
    os.umask(umask := os.umask(0))
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/a.json")
    for content in (b"1", b"2"):
        write_whole(tmp_path / "link", content)
        assert (tmp_path / "real/a.json").read_bytes() == content
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["a.json"]


def test_a_pipe_gets_the_content_as_it_is(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(fifo, b"hello")
    assert os.read(reader, 100) == b"hello"
    os.close(reader)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_where_nothing_can_be_written_what_was_there_stays(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "none/a", b"1")
    with pytest.raises(OSError, match="No space left"):
        write_whole(Path("/dev/full"), b"1")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/a.json", "No such file or directory"),
        ("file/a.json", "Not a directory"),
        (".", "it is a folder"),
        ("x" * 256, "File name too long"),
        ("null\0", "null"),
    ],
)
def test_an_impossible_place_is_refused_without_a_trace(tmp_path, name, said):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError) as caught:
        require_writable("--output", tmp_path / name)
    assert said in caught.value.message
    assert caught.value.message.startswith("--output ")
    assert os.listdir(tmp_path) == ["file"]


def test_a_possible_place_is_tried_without_a_trace(tmp_path):
    require_writable("--output", tmp_path / "new.json")
    assert os.listdir(tmp_path) == []
    (tmp_path / "old.json").write_text("old")
    require_writable("--output", tmp_path / "old.json")
    assert (os.listdir(tmp_path), (tmp_path / "old.json").read_text()) == (["old.json"], "old")
    require_writable("--output", Path("/dev/null"))


_WRITER = """
import sys
from pathlib import Path
from preflight.whole_file import write_whole
contents = [letter * 2_000_000 for letter in (b"a", b"b")]
print("ready", flush=True)
while True:
    for content in contents:
        write_whole(Path(sys.argv[1]), content)
"""


@pytest.mark.parametrize("after_s", [0.0, 0.013, 0.031, 0.052])
def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path, after_s):
    path = tmp_path / "out.json"
    with subprocess.Popen([sys.executable, "-c", _WRITER, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        while not path.exists():
            assert writer.poll() is None
        try:
            writer.wait(after_s)
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
    content = path.read_bytes()
    assert content in (b"a" * 2_000_000, b"b" * 2_000_000)
    # Killed between two system calls it leaves the other file, which the next writing uses up.
    assert len(os.listdir(tmp_path)) <= 2
    write_whole(path, b"next")
    assert (os.listdir(tmp_path), path.read_bytes()) == (["out.json"], b"next")


def test_two_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "out.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for writer in writers:
            writer.stdout.readline()
        for _ in range(50):
            if path.exists():
                assert path.read_bytes() in (b"a" * 2_000_000, b"b" * 2_000_000)
        assert [writer.poll() for writer in writers] == [None, None]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
