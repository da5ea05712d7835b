"""The rounds of `bench.feed`: which row is measured when, each slice in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bench.feed_loaders import ACTION, HORIZON, ROWS, STATE, Row, disk_cache
from bench.feed_slice import Slice
from bench.page_cache import dataset_files, resident_share
from bench.processes import preflight_command
from preflight.config.schema import IMAGE_SLOTS
from preflight.errors import UsageError
from preflight.suggest import unknown

_ROUND_SEED = 1000  # no two rounds read the same order
_START_S = 180.0  # for imports, opening the dataset and the first batches; a slice that takes longer is given up


@dataclass(frozen=True, kw_only=True)
class RowSlices:
    """One row's slices, one a round."""

    row: Row
    slices: tuple[Slice, ...]

    @property
    def refused(self) -> str | None:
        """Why the row could not be measured; None where it was, in every round."""
        return next((one.refused for one in self.slices if one.refused is not None), None)


@dataclass(frozen=True, kw_only=True)
class Feed:
    """All rows on one dataset."""

    root: Path
    frames: int
    cameras: tuple[tuple[str, tuple[int, ...]], ...]  # key and shape
    codec: str | None
    num_workers: int
    batch_size: int
    resident_share: float | None  # of the dataset's files in the page cache, before the first round
    rows: tuple[RowSlices, ...]

    @property
    def own_measured(self) -> bool:
        """Whether none of preflight's own rows is missing."""
        return all(one.refused is None for one in self.rows if one.row.whose in ("ours", "limit"))


def require_rows(keys: Sequence[str] | None) -> tuple[Row, ...]:
    """The rows of these names; all of them where none is named.

    Raises:
        UsageError: There is no such row; lists them.
    """
    names = [row.key for row in ROWS]
    for key in keys or ():
        if key not in names:
            raise UsageError(*unknown("row", key, names))
    return tuple(row for row in ROWS if not keys or row.key in keys)


def turn_order(count: int, round_index: int) -> tuple[int, ...]:
    """The order of so many rows in a round: each round begins with the next one."""
    return tuple((round_index + position) % count for position in range(count))


def measure_rounds(
    root: Path,
    folder: Path,
    *,
    keys: Sequence[str] | None,
    num_workers: int,
    batch_size: int,
    rounds: int,
    seconds: float,
    say: Callable[[str], object],
) -> Feed:
    """Measures the rows on a dataset.

    Args:
        root: A LeRobot dataset with cameras.
        folder: For what is written on the way; empty.
        keys: Names of rows; None: all.
        num_workers: Of each loader.
        batch_size: Samples in a batch.
        rounds: Slices of each row. One that cannot be measured is not tried again.
        seconds: Of a slice, from its first batch on.
        say: Told what is measured.

    Raises:
        UsageError: An unknown row.
        DataError: The dataset cannot be read.
    """
    from preflight.data.metadata import read_info

    rows, info = require_rows(keys), read_info(root)
    shapes = tuple((key, tuple(info.features[key].shape)) for key in info.camera_keys)
    run_file = _write_run(folder, root, [key for key, _ in shapes])
    warm = _read_through(root)
    refusals = _prepared(rows, run_file, say)
    slices: dict[str, list[Slice]] = {row.key: [] for row in rows}
    for round_index in range(rounds):
        for position in turn_order(len(rows), round_index):
            row, done = rows[position], slices[rows[position].key]
            if done and done[-1].refused is not None:
                continue
            if row.key in refusals:
                done.append(Slice(refused=refusals[row.key]))
                continue
            say(f"{root.name}, round {round_index + 1} of {rounds}: {row.title}")
            request = {
                "row": row.key,
                "seconds": seconds,
                "root": str(root.absolute()),
                "run_file": str(run_file),
                "folder": str(folder),
                "batch_size": batch_size,
                "num_workers": num_workers,
                "seed": round_index * _ROUND_SEED,
            }
            done.append(run_slice(request, folder, timeout_s=_START_S + 3 * seconds))
            if done[-1].refused is not None:
                say(f"  not measured: {done[-1].refused}")
    return Feed(
        root=root,
        frames=info.total_frames,
        cameras=shapes,
        codec=_codec(root),
        num_workers=num_workers,
        batch_size=batch_size,
        resident_share=warm,
        rows=tuple(RowSlices(row=row, slices=tuple(slices[row.key])) for row in rows),
    )


def run_slice(request: dict[str, object], folder: Path, *, timeout_s: float) -> Slice:
    """Measures a slice in a process of its own; nothing that it started is alive afterwards.

    Args:
        request: For `bench.feed_slice.measure`.
        folder: For request, answer and log.
        timeout_s: After which it is given up.
    """
    asked, answer, log = (folder / name for name in ("request.json", "answer.json", "slice.log"))
    asked.write_text(json.dumps(request))
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.feed_slice", str(asked), str(answer)]
    with _scratch() as scratch, log.open("wb") as written, _own_group(command, written, scratch) as process:
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return Slice(refused=f"gave no result within {timeout_s:.0f} s")
    if answer.is_file():
        return Slice.read(answer)
    last = _last_line(log.read_bytes())
    return Slice(refused=f"its process ended with {process.returncode}" + (f": {last}" if last else ""))


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """For what libraries put among the system's temporary files and leave there when they are killed.

    Sockets among them: their paths have at most 107 characters, which a folder of the user's choice may exceed.
    """
    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="feed-", dir=short, ignore_cleanup_errors=True)


@contextmanager
def _own_group(command: list[str], log: BinaryIO, scratch: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, of which at the end all are killed: workers outlive a parent that crashes."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "TMPDIR": scratch},
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _write_run(folder: Path, root: Path, cameras: list[str]) -> Path:
    slots = "".join(f"{slot} = {json.dumps(key)}\n" for slot, key in zip(IMAGE_SLOTS, cameras, strict=False))
    path = folder / "feed.toml"
    path.write_text(
        f'base = "pi0_lighter_cup_demo"\n[model]\naction_horizon = {HORIZON}\n'
        f'[data]\nroot = {json.dumps(str(root.absolute()))}\nstate = "{STATE}"\nactions = "{ACTION}"\n'
        f"[data.cameras]\n{slots}"
    )
    return path


def _read_through(root: Path) -> float | None:
    """Reads all of the dataset, so that no row finds it on the disk and the next one in memory."""
    files = dataset_files(root)
    for path in files:
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass
    return resident_share(files)


def _prepared(rows: tuple[Row, ...], run_file: Path, say: Callable[[str], object]) -> dict[str, str]:
    """Builds the frame cache on disk where a row wants it; by row what could not be made."""
    if not any(row.key == "ours-disk" for row in rows):
        return {}
    say("Building the frame cache on disk")
    words = [word for setting in disk_cache(run_file.parent) for word in ("--set", setting)]
    done = subprocess.run(preflight_command("cache", str(run_file), *words), capture_output=True, check=False)
    if done.returncode == 0:
        return {}
    return {"ours-disk": f"preflight cache: {_last_line(done.stderr) or f'exit code {done.returncode}'}"}


def _last_line(text: bytes) -> str:
    lines = [line.strip() for line in text.decode(errors="replace").splitlines()]
    said = [line for line in lines if line and not line.startswith(("hint:", "$"))]
    return said[-1][:200] if said else ""


def _codec(root: Path) -> str | None:
    """Of the first video."""
    import av

    for path in dataset_files(root):
        if path.suffix == ".mp4":
            with suppress(av.FFmpegError, OSError), av.open(str(path)) as container:
                return str(container.streams.video[0].codec_context.name)
    return None
