"""Where loader workers are in their code: they tell when they are asked, and whatever they are stuck in.

A worker that waits for a lock or for a network file system runs no Python, so nothing in Python could answer. Its
`faulthandler` does, on a signal, into a pipe that the parent reads; no file is made that could be left behind.
"""

from __future__ import annotations

import faulthandler
import linecache
import os
import re
import select
import signal
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from preflight.errors import PreflightError

ASK = signal.SIGUSR1

# How long a worker may take to answer, and to say nothing more once it has begun. A dump takes milliseconds.
_ANSWER_S = 1.0
_QUIET_S = 0.1
_PATIENT_FOR = 3
_SHOWN_FRAMES = 6
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$')
_WAITS = re.compile(r"\b(acquire|lock|Lock|wait|join|queue|\.get\(|recv)\b|^with .*lock", re.IGNORECASE)
_DECODES = re.compile(r"\b(av|decord|torchcodec|cv2|decode|imageio)\b", re.IGNORECASE)
_READS = re.compile(r"\b(open|read|load|stat|listdir|glob|requests|urlopen|hf_hub_download|get_file)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Frame:
    """A line of Python that was being executed."""

    file: str
    line: int
    function: str

    @property
    def source(self) -> str:
        """What stands there; empty where the file cannot be read here."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        code = f": {self.source}" if self.source else ""
        return f"{os.path.basename(self.file)}, line {self.line}, in {self.function}{code}"


@dataclass(frozen=True)
class WorkerStack:
    """Where one worker is."""

    number: int
    pid: int
    frames: tuple[Frame, ...]  # of the thread that reads, the innermost first; empty where it did not answer
    silence: str = ""  # why it did not, as far as can be told
    text: str = ""  # all threads, as faulthandler writes them

    @property
    def reads(self) -> bool:
        """Whether it is at a batch, and not waiting to be told the next one."""
        return any(frame.function == "read_batch" for frame in self.frames)

    @property
    def place(self) -> Frame | None:
        """The innermost line that is neither Python's own nor an installed package's; else the innermost."""
        return next((frame for frame in self.frames if _is_the_users(frame)), next(iter(self.frames), None))

    def lines(self) -> list[str]:
        """For people: the worker and its innermost frames."""
        if not self.frames:
            return [f"worker {self.number} (pid {self.pid}): {self.silence}"]
        # Below `read_batch` lies the loader, which looks the same in every worker.
        last = next((n for n, frame in enumerate(self.frames) if n and frame.function == "read_batch"), _SHOWN_FRAMES)
        frames = self.frames[: min(last, _SHOWN_FRAMES)]
        return [f"worker {self.number} (pid {self.pid}), innermost first:", *(f"  {frame}" for frame in frames)]


def answer_into(pipe: Connection) -> None:
    """In a worker: from now on, tell every thread's stack on `ASK`.

    Args:
        pipe: The writing end of one. It never blocks: where nobody reads, what does not fit is lost.
    """
    os.set_blocking(pipe.fileno(), False)
    faulthandler.register(ASK, file=pipe, all_threads=True, chain=False)


def ask(pids: Sequence[int], descriptor: int, *, proc: Path = Path("/proc")) -> list[WorkerStack]:
    """In the parent: where all workers are, one after the other; it waits less after the first that are silent.

    Args:
        pids: The workers, in order.
        descriptor: The reading end of the pipe that all of them write into.
        proc: Where procfs is mounted.
    """
    stacks: list[WorkerStack] = []
    for number, pid in enumerate(pids):
        # Whatever keeps one from answering often keeps all of them; there may be dozens.
        silent = sum(not stack.frames for stack in stacks)
        stacks.append(_ask(number, pid, descriptor, _ANSWER_S if silent < _PATIENT_FOR else _QUIET_S, proc))
    return stacks


def causes(stacks: Sequence[WorkerStack]) -> str:
    """The likely causes of a hang, the one that the stacks speak for first."""
    lock = "a lock that another thread held when the process was forked, or an answer that nobody gives"
    decoder = "a deadlock in a video decoder (its threads do not survive a fork: open videos in the worker)"
    disk = "a network file system or a download that does not answer"
    text = "\n".join(f"{frame.file} {frame.source}" for stack in stacks for frame in stack.frames[:3])
    if any("state D" in stack.silence for stack in stacks):
        order = [disk, lock, decoder]
    elif _WAITS.search(text):
        order = [lock, decoder, disk]
    elif _DECODES.search(text):
        order = [decoder, lock, disk]
    elif _READS.search(text):
        order = [disk, decoder, lock]
    else:
        order = [disk, lock, decoder]
    return f"Likely causes: {'; '.join(order)}."


def time_out(pids: Sequence[int], descriptor: int, timeout_s: float) -> PreflightError:
    """Says that no batch came, and where the workers are.

    Args:
        pids: The workers, in order.
        descriptor: The reading end of the pipe that all of them write into.
        timeout_s: How long was waited.
    """
    message = f"no batch came from the loader's {len(pids)} worker(s) within {timeout_s:g} s"
    stacks = ask(pids, descriptor)
    # One that waits for work is not what holds the batch up.
    told = [stack for stack in stacks if stack.place is not None]
    stuck = next((stack for stack in told if stack.reads), next(iter(told), None))
    if stuck is not None:
        message += f"; worker {stuck.number} is at {stuck.place}"
    error = PreflightError(message, f"Reading is stuck or very slow. {causes(stacks)}")
    for stack in stacks:
        error.add_note("\n".join(stack.lines()))
    return error


def _ask(number: int, pid: int, descriptor: int, answer_s: float, proc: Path) -> WorkerStack:
    if _catches(pid, proc) is False:
        # The signal would end it.
        return WorkerStack(number, pid, (), "it has not begun to read: it still imports or unpickles the dataset")
    _drain(descriptor, 0.0)
    try:
        os.kill(pid, ASK)
    except OSError:
        return WorkerStack(number, pid, (), "it has ended")
    text = _drain(descriptor, answer_s)
    if not text:
        state = _state(pid, proc)
        silence = "it gave no stack"
        if state == "D":
            silence += ": it waits in the kernel for a disk or a file system that does not answer (state D)"
        elif state in ("T", "t"):
            silence += ": it is stopped by a signal or a debugger (state T)"
        return WorkerStack(number, pid, (), silence)
    return WorkerStack(number, pid, _reading_thread(text), text=text)


def _drain(descriptor: int, wait_s: float) -> str:
    """What comes within the time, until nothing more comes."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        ready = poll.poll(1000 * min(wait_s, _QUIET_S if parts else wait_s))
        if not ready or not (part := os.read(descriptor, 1 << 16)):
            return b"".join(parts).decode(errors="replace")
        parts.append(part)


def _reading_thread(text: str) -> tuple[Frame, ...]:
    threads: list[list[Frame]] = []
    for line in text.splitlines():
        found = _FRAME.match(line)
        if found is None:
            threads.append([])
        elif threads:
            threads[-1].append(Frame(found["file"], int(found["line"]), found["function"]))
    # The main thread; the others are the dataset's and the one that ends with the parent.
    main = [frames for frames in threads if any(frame.function == "serve_batches" for frame in frames)]
    return tuple((main or [frames for frames in threads if frames] or [[]])[-1])


def _is_the_users(frame: Frame) -> bool:
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not frame.file.startswith((*filter(None, installed), "<")) and "site-packages" not in frame.file


def _catches(pid: int, proc: Path) -> bool | None:
    """Whether a process has a handler for `ASK`; None where nobody may know."""
    try:
        status = (proc / str(pid) / "status").read_text()
    except OSError:
        return None
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), None)
    return None if mask is None else bool(int(mask, 16) >> (ASK - 1) & 1)


def _state(pid: int, proc: Path) -> str | None:
    try:
        return (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None
