import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from preflight.telemetry.gpu_readings import GpuReadings
from preflight.telemetry.sampler import TelemetrySampler, TelemetryWriter, numbers

MIB = 1 << 20
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# Prints what it used by its own account, and rests until it is told to end.
REST = (
    "import resource; u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime, flush=True); input()"
)
BURN = "import time\nwhile time.process_time() < 0.6: pass\n"


class NvmlError(Exception):
    pass


def nvml(*, failing: str = "", power_mw: int = 312_500) -> SimpleNamespace:
    """A driver with two GPUs, of which the named function fails for the first."""

    def answer(name: str, value: Any) -> Any:
        def call(handle: int, *_: Any) -> Any:
            if name == failing and handle == 0:
                raise NvmlError("Unknown Error")
            return value

        return name, call

    calls = [
        answer("nvmlDeviceGetHandleByIndex", 0),
        answer("nvmlDeviceGetUtilizationRates", SimpleNamespace(gpu=97, memory=40)),
        answer("nvmlDeviceGetMemoryInfo", SimpleNamespace(total=80 * MIB, free=30 * MIB, used=50 * MIB)),
        answer("nvmlDeviceGetPowerUsage", power_mw),
        answer("nvmlDeviceGetTemperature", 71),
        answer("nvmlDeviceGetCurrentClocksThrottleReasons", 0x4 | 0x40 | 0x1000),
    ]
    functions = dict(calls)
    by_index = functions["nvmlDeviceGetHandleByIndex"]
    functions["nvmlDeviceGetHandleByIndex"] = lambda index: (by_index(index), index)[1]
    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        **functions,
    )


READING = {
    "utilization_percent": 97,
    "memory_used_bytes": 50 * MIB,
    "memory_total_bytes": 80 * MIB,
    "power_w": 312.5,
    "temperature_c": 71,
    "throttle_reasons": ["sw_power_cap", "hw_thermal_slowdown", "0x1000"],
}


@contextmanager
def running(program: str, *, cwd: Path | None = None, **environ: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A child that has printed its first line and waits for Enter, and that line."""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **environ},
    ) as child:
        assert child.stdout is not None
        try:
            yield child, child.stdout.readline()
        finally:
            child.communicate("\n" if child.poll() is None else None)


def next_line(child: subprocess.Popen) -> str:
    """Lets the child go on until it has printed its next line."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return child.stdout.readline()


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder beside the repository's own: /tmp may be in RAM, where nothing is written to storage."""
    cache = Path(__file__).parent.parent / ".pytest_cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        yield Path(folder)


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def wait_until(condition: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


# Processes


def test_cpu_is_what_the_process_itself_counts() -> None:
    program = f"print(1, flush=True); input()\n{BURN}{REST}"
    with running(program) as (child, _):
        sampler = TelemetrySampler(child.pid)
        before = sampler.sample()
        told = float(next_line(child))
        after = sampler.sample()
    assert before["interval_s"] is before["tree"]["cpu_cores"] is before["main"]["cpu_cores"] is None
    assert after["tree"]["cpu_s"] == pytest.approx(told, abs=5 * TICK_S)
    used = after["tree"]["cpu_s"] - before["tree"]["cpu_s"]
    assert used >= 0.5
    assert after["tree"]["cpu_cores"] * after["interval_s"] == pytest.approx(used, abs=2 * TICK_S)
    assert after["main"]["cpu_cores"] == after["tree"]["cpu_cores"]
    assert after["workers"] | {"pss_bytes": 0, "uss_bytes": 0} == after["workers"]
    assert (after["workers"]["count"], after["workers"]["cpu_cores"]) == (0, 0.0)


def test_workers_are_told_from_the_main_process() -> None:
    hold = "held = bytearray(b'1') * (50 << 20); print(1, flush=True); input()"
    program = f"""
import subprocess, sys
p = subprocess.PIPE
workers = [subprocess.Popen([sys.executable, '-c', {hold!r}], stdin=p, stdout=p) for _ in range(2)]
for worker in workers: worker.stdout.readline()
print(1, flush=True); input()
for worker in workers: worker.communicate(b'\\n')
"""
    with running(program) as (child, _):
        sample = TelemetrySampler(child.pid).sample()
    main, workers, tree = sample["main"], sample["workers"], sample["tree"]
    assert workers["count"] == 2
    for name in ("pss_bytes", "uss_bytes"):
        assert tree[name] == main[name] + workers[name]
        assert 0 < main[name] < 50 * MIB
    assert 100 * MIB < workers["uss_bytes"] < 160 * MIB
    assert workers["uss_bytes"] <= workers["pss_bytes"]


def test_what_an_ended_worker_used_stays_counted_once(on_disk: Path) -> None:
    work = BURN + "import os; f = open('data', 'wb'); f.write(bytes(8 << 20)); f.flush(); os.fsync(f.fileno()); " + REST
    program = f"""
import subprocess, sys
p = subprocess.PIPE
worker = subprocess.Popen([sys.executable, '-c', {work!r}], stdin=p, stdout=p)
print(float(worker.stdout.readline()), flush=True); input()
worker.communicate(b'\\n')
print(1, flush=True); input()
"""
    with running(program, cwd=on_disk, PYTHONDONTWRITEBYTECODE="1") as (child, told):
        sampler = TelemetrySampler(child.pid)
        living = sampler.sample()
        next_line(child)
        time.sleep(0.11)  # shares are not told over less than 0.1 s
        ended = sampler.sample()
    assert (living["workers"]["count"], ended["workers"]["count"]) == (1, 0)
    assert living["tree"]["cpu_s"] >= float(told) - 2 * TICK_S
    for sample in (living, ended):
        assert 8 * MIB <= sample["tree"]["written_bytes"] < 12 * MIB
        assert sample["tree"]["cpu_s"] < 2 * float(told)
    assert ended["tree"]["cpu_s"] >= living["tree"]["cpu_s"]
    # Its last moments and its end are in the workers' share; what it had used before is not told again.
    used = ended["tree"]["cpu_s"] - living["tree"]["cpu_s"]
    assert ended["tree"]["cpu_cores"] * ended["interval_s"] == pytest.approx(used, abs=2 * TICK_S)


def test_read_bytes_are_those_that_storage_gave(on_disk: Path) -> None:
    data = on_disk / "data"
    with data.open("wb") as file:
        file.write(os.urandom(8 * MIB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    program = "print(1, flush=True); input(); open('data', 'rb').read(); print(1, flush=True); input()"
    with running(program, cwd=on_disk) as (child, _):
        sampler = TelemetrySampler(child.pid)
        before = sampler.sample()
        counted = int((Path("/proc") / str(child.pid) / "io").read_text().split("read_bytes: ")[1].split()[0])
        assert before["tree"]["read_bytes"] == counted
        next_line(child)
        counted = int((Path("/proc") / str(child.pid) / "io").read_text().split("read_bytes: ")[1].split()[0])
        assert sampler.sample()["tree"]["read_bytes"] == counted


def test_memory_is_left_out_where_it_was_not_asked_for() -> None:
    sample = TelemetrySampler(os.getpid()).sample(memory=False)
    assert not any(key in sample[part] for part in ("tree", "main", "workers") for key in ("pss_bytes", "uss_bytes"))
    assert sample["host_memory"]["available_bytes"] > 0


def test_a_vanished_process_leaves_the_machine(tmp_path: Path) -> None:
    # Some ticks of the kernel's clock, of 10 ms each, before it is gone.
    work = "import time\nwhile time.process_time() < 0.05: pass\nprint(1, flush=True); input()"
    with running(work) as (child, _):
        sampler = TelemetrySampler(child.pid)
        assert sampler.sample()["tree"] is not None
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        zombie = sampler.sample()
        child.wait()
        child.stdin = None
        gone = sampler.sample(folder=tmp_path / "not" / "yet")
    assert zombie["workers"]["count"] == 0
    assert zombie["main"]["pss_bytes"] is None
    assert zombie["tree"]["cpu_s"] > 0
    assert (gone["tree"], gone["main"], gone["workers"]) == (None, None, None)
    assert gone["disk"]["free_bytes"] > 0
    assert gone["host_memory"]["limit_bytes"] > 0
    assert gone["network"]["received_bytes"] >= 0
    assert TelemetrySampler(child.pid).sample()["tree"] is None


def put(proc: Path, pid: int, parent: int, *, started: int = 100, ticks: int = 0, name: str = "py") -> None:
    (proc / str(pid)).mkdir(exist_ok=True)
    text = f"{pid} ({name}) S {parent} {' '.join(['0'] * 9)} {ticks} 0 0 0 20 0 1 0 {started} 0\n"
    (proc / str(pid) / "stat").write_text(text)


def test_the_tree_by_parents_and_start_times(tmp_path: Path) -> None:
    put(tmp_path, 1, 0)
    put(tmp_path, 10, 1)
    put(tmp_path, 20, 10, name="a) S 1 (b")  # a name may look like the fields after it
    put(tmp_path, 15, 20)  # pids start anew from the bottom when they are used up
    put(tmp_path, 30, 1)
    put(tmp_path, 31, 30)
    put(tmp_path, 40, 39)  # its parent was not there yet when the list was read
    sampler = TelemetrySampler(10, proc=tmp_path, cgroup=tmp_path)
    assert sampler.sample()["workers"]["count"] == 2
    put(tmp_path, 39, 10)
    assert sampler.sample()["workers"]["count"] == 4
    put(tmp_path, 10, 1, started=999)  # another process with the same pid
    assert sampler.sample()["tree"] is None


def test_a_process_that_left_the_tree_lowers_no_figure(tmp_path: Path) -> None:
    put(tmp_path, 1, 0)
    put(tmp_path, 10, 1, ticks=100)
    put(tmp_path, 20, 10, ticks=900)
    sampler = TelemetrySampler(10, proc=tmp_path, cgroup=tmp_path)
    sampler.sample()
    put(tmp_path, 20, 1, ticks=900)
    put(tmp_path, 10, 1, ticks=150)
    time.sleep(0.11)
    sample = sampler.sample()
    assert sample["tree"]["cpu_s"] == 1000 * TICK_S
    assert sample["tree"]["cpu_cores"] * sample["interval_s"] == pytest.approx(50 * TICK_S, rel=0.02)
    assert sample["tree"]["read_bytes"] is None  # this /proc has no io files


# GPUs


@pytest.mark.parametrize(
    ("failing", "lost"),
    [
        ("nvmlDeviceGetUtilizationRates", {"utilization_percent"}),
        ("nvmlDeviceGetMemoryInfo", {"memory_used_bytes", "memory_total_bytes"}),
        ("nvmlDeviceGetPowerUsage", {"power_w"}),
        ("nvmlDeviceGetTemperature", {"temperature_c"}),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", {"throttle_reasons"}),
        ("nvmlDeviceGetHandleByIndex", set(READING)),
    ],
)
def test_one_failing_call_loses_only_its_own_reading(failing: str, lost: set[str]) -> None:
    first, second = GpuReadings(nvml(failing=failing)).read()
    assert first == {"index": 0, **READING, **dict.fromkeys(lost)}
    assert second == {"index": 1, **READING}


def test_a_binding_without_a_function_reads_the_rest() -> None:
    module = nvml()
    del module.nvmlDeviceGetCurrentClocksThrottleReasons
    assert GpuReadings(module).read()[0] == {"index": 0, **READING, "throttle_reasons": None}


def test_no_driver_no_gpus() -> None:
    def init() -> None:
        raise NvmlError("Driver Not Loaded")

    readings = GpuReadings(SimpleNamespace(NVMLError=NvmlError, nvmlInit=init))
    assert readings.read() == []
    readings.close()


def test_throttle_reasons_are_those_of_the_binding() -> None:
    import pynvml

    from preflight.telemetry.gpu_readings import _THROTTLE_REASONS

    prefix = "nvmlClocksThrottleReason"
    theirs = {getattr(pynvml, name): name.removeprefix(prefix) for name in dir(pynvml) if name.startswith(prefix)}
    for bit, name in _THROTTLE_REASONS.items():
        # Two names have one bit there, hence "in": UserDefinedClocks is the old name of ApplicationsClocksSetting.
        assert theirs.get(bit, "").lower() in (name.replace("_", ""), "userdefinedclocks", ""), name


def test_numbers_are_flat() -> None:
    sample = TelemetrySampler(os.getpid(), nvml=nvml(failing="nvmlDeviceGetPowerUsage")).sample(memory=False)
    found = numbers(sample)
    assert all(isinstance(value, int | float) for value in found.values())
    assert found["telemetry/gpus/1/power_w"] == 312.5
    assert found["telemetry/gpus/1/throttle_reasons/sw_power_cap"] == 1
    assert "telemetry/gpus/0/power_w" not in found
    assert found["telemetry/tree/cpu_s"] == sample["tree"]["cpu_s"]
    assert not any("index" in name or name.endswith("/time") for name in found)


# The file


def test_lines_from_the_first_to_the_last_moment(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    seen: list[dict[str, Any]] = []
    began = time.time()
    with running("print(1, flush=True); input()") as (child, _):
        with TelemetryWriter(child.pid, path, period_s=600, on_sample=seen.append, nvml=nvml()):
            wait_until(lambda: seen)
        ended = time.time()
    lines = lines_of(path)
    assert lines == seen
    assert len(lines) == 2  # the period has not passed
    assert began - 0.01 <= lines[0]["time"] <= lines[1]["time"] <= ended + 0.01
    assert list(lines[0]) == [
        "time", "interval_s", "tree", "main", "workers", "network", "disk", "host_memory", "gpus"
    ]  # fmt: skip
    assert lines[0]["gpus"][1] == {"index": 1, **READING}


def test_each_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    with TelemetryWriter(os.getpid(), path, period_s=0.1):
        wait_until(lambda: path.exists() and len(lines_of(path)) >= 2)
        assert lines_of(path)[1]["time"] > lines_of(path)[0]["time"]  # while the writer is still at work


def test_samples_wait_for_the_folder_and_never_make_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "telemetry.jsonl"
    seen: list[dict[str, Any]] = []
    with TelemetryWriter(os.getpid(), path, period_s=0.1, on_sample=seen.append):
        wait_until(lambda: len(seen) >= 2)
        assert not path.parent.exists()
        path.parent.mkdir()
    assert lines_of(path) == seen


def test_samples_wait_until_they_are_given_a_file(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    seen: list[dict[str, Any]] = []
    with TelemetryWriter(os.getpid(), on_sample=seen.append) as writer:
        wait_until(lambda: seen)
        writer.open(path)
    assert lines_of(path) == seen
    assert seen[0]["disk"]["free_bytes"] is None
    assert seen[-1]["disk"]["free_bytes"] > 0


def test_a_folder_that_never_came_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), TelemetryWriter(os.getpid(), tmp_path / "run" / "telemetry.jsonl"):
        pass
    (record,) = caplog.records
    assert "never appeared" in record.getMessage()
    assert os.listdir(tmp_path) == []


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preflight.telemetry.sampler._KEPT_LINES", 1)
    path = tmp_path / "telemetry.jsonl"
    seen: list[dict[str, Any]] = []
    with TelemetryWriter(os.getpid(), period_s=600, on_sample=seen.append) as writer:
        wait_until(lambda: seen)
        writer.open(path)
    assert lines_of(path) == seen[-1:]


def test_a_file_that_is_there_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    path.write_text('{"time": 1}\n')
    with TelemetryWriter(os.getpid(), path):
        pass
    first, *rest = lines_of(path)
    assert first == {"time": 1}
    assert rest


@pytest.mark.parametrize(("name", "reason"), [("full", "No space left on device"), ("folder", "Is a directory")])
def test_a_file_that_cannot_be_written_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, reason: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").symlink_to("/dev/full")  # the kernel's own full disk
    seen: list[dict[str, Any]] = []
    with TelemetryWriter(os.getpid(), tmp_path / name, period_s=0.1, on_sample=seen.append):
        wait_until(lambda: len(seen) >= 3)  # who else listens is served on
    assert [record.getMessage() for record in caplog.records] == [
        f"Telemetry is no longer written to {tmp_path / name}: {reason}"
    ]


def test_with_nowhere_to_write_and_nobody_listening_the_thread_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = TelemetryWriter(os.getpid(), tmp_path)
    with writer:
        wait_until(lambda: not writer._thread.is_alive())
    assert len(caplog.records) == 1


def test_a_disk_that_fills_up_keeps_whole_lines(tmp_path: Path) -> None:
    # A file size limit cuts a write short just as a full disk does.
    program = """
import os, resource, signal, sys, time
from pathlib import Path
from preflight.telemetry.sampler import TelemetryWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
seen = []
with TelemetryWriter(os.getpid(), path, period_s=0.1, on_sample=seen.append):
    while len(seen) < 3: time.sleep(0.05)
print(len(seen))
"""
    path = tmp_path / "telemetry.jsonl"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 1 <= len(lines_of(path)) < int(done.stdout)
    assert done.stderr.count("Telemetry is no longer written") == 1


def test_a_listener_that_raises_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def listen(sample: dict[str, Any]) -> None:
        calls.append(1)
        raise RuntimeError("wandb is down")

    path = tmp_path / "telemetry.jsonl"
    with TelemetryWriter(os.getpid(), path, period_s=600, on_sample=listen):
        wait_until(lambda: calls)
    assert len(calls) == 1
    assert len(lines_of(path)) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "Telemetry goes to its file alone from now on: RuntimeError('wandb is down')"
    ]


def test_a_process_that_ends_meanwhile_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "telemetry.jsonl"
    with running("print(1, flush=True); input()") as (child, _), TelemetryWriter(child.pid, path, period_s=0.1):
        wait_until(path.exists)
        child.communicate("\n")
        wait_until(lambda: lines_of(path)[-1]["tree"] is None)
    assert lines_of(path)[0]["workers"]["count"] == 0
    assert not caplog.records


def test_costly_sampling_is_done_less_often(tmp_path: Path) -> None:
    module = nvml()

    def slow(handle: int) -> int:
        until = time.thread_time() + 0.03
        while time.thread_time() < until:
            pass
        return 1000

    module.nvmlDeviceGetPowerUsage = slow
    path = tmp_path / "telemetry.jsonl"
    # The shortest period, to see it stretched.
    with TelemetryWriter(os.getpid(), path, period_s=0.01, nvml=module):
        time.sleep(1)  # 60 ms a sample: after the second, the next is due in half a minute
    assert len(lines_of(path)) <= 3


def test_nothing_of_the_environment_and_the_command_line_is_written(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    program = "print(1, flush=True); input(); 'token-of-the-command-line'"
    with running(program, WANDB_API_KEY="token-of-the-environment") as (child, _), TelemetryWriter(child.pid, path):
        wait_until(path.exists)
    text = path.read_text()
    assert "token" not in text
    assert str(tmp_path) not in text
    words = {value for value in os.environ.values() if len(value) > 5 and not value.isdecimal()}
    assert not [word for word in words if word in text]


def test_importing_it_imports_nothing_heavy() -> None:
    program = (
        "import os, sys; from preflight.telemetry.sampler import TelemetrySampler;"
        "TelemetrySampler(os.getpid()).sample();"
        "print([name for name in ('jax', 'flax', 'torch', 'lerobot', 'numpy', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
