"""The processes of `storage.write`: `python -P rehearsed_save.py keep PLACE SECONDS`, and the writer that this starts.

The keeper makes a temporary folder in PLACE and deletes it whatever becomes of the others: Ctrl-C and a check that is
given up on end the process that asked without a word (`os._exit`), and the kernel may end the writer. It reads the
state's shapes from its stdin, whose end means that nobody waits for the answer any more, and answers on its stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

PREFIX = ".preflight-rehearsal-"
_PERIOD_S = 0.05  # between two looks at the writer's memory


def keep(place: Path, timeout_s: float) -> None:
    """Rehearses a save; nothing of jax is imported here, so that it is up in a moment."""
    shapes = sys.stdin.readline()
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    except OSError as error:
        _say({"error": error.strerror or str(error)})
        return
    try:
        with tempfile.TemporaryFile("w+", errors="replace") as noise:
            answer = _supervise(folder, shapes, timeout_s, noise)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _say(answer)


def _supervise(folder: Path, shapes: str, timeout_s: float, noise: IO[str]) -> dict[str, Any]:
    # The machine's GPU is left alone. On the CPU, the copy that preflight makes first stands for the one off a device.
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    writer = subprocess.Popen(
        [sys.executable, "-P", __file__, "write", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=noise,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)},
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            writer.stdin.write(shapes)
            writer.stdin.close()
        # Whichever comes first: the writer's answer or end, the end of who asked for it, or the time.
        ready, _, _ = select.select([writer.stdout, sys.stdin], [], [], timeout_s)
        if not ready:
            return {"too_slow_s": timeout_s}
        if writer.stdout not in ready:
            return {"error": "nobody waits for it any more"}
        said, code = writer.stdout.read(), writer.wait()
    finally:
        # Dead before its folder is deleted: a writer that lives on would make it anew.
        writer.kill()
        writer.wait()
    try:
        return dict(json.loads(said))
    except ValueError:
        return {"error": _end(code, noise)}


def _end(code: int, noise: IO[str]) -> str:
    if code == -signal.SIGKILL:
        return "the process that wrote was killed, as the kernel does when the RAM runs out"
    noise.seek(0)
    last = next((line.strip() for line in reversed(noise.read().splitlines()) if line.strip()), "no message")
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"the process that wrote ended with {how}: {last[:300]}"


def write(folder: Path) -> None:
    """Saves a state of the shapes on stdin with preflight's own save, and measures it."""
    shapes = json.load(sys.stdin)
    from preflight.errors import PreflightError
    from preflight.training import checkpoints

    state, num_bytes = _noise(shapes)
    try:
        with _memory_watch() as held:
            manager = checkpoints.open_manager(folder, keep_period=None)
            began = time.perf_counter()
            checkpoints.save(manager, 0, state, {}, pending=None)
            blocking_s = time.perf_counter() - began
            checkpoints.finish(manager, 0)
            stored = _flush(folder)
            seconds = time.perf_counter() - began
    except (PreflightError, OSError) as error:
        text = error.message if isinstance(error, PreflightError) else error.strerror or str(error)
        _say({"error": text.replace(str(folder), str(folder.parent))})
    else:
        figures = {"bytes": num_bytes, "stored": stored, "peak": max(held) - held[0]}
        _say({**figures, "seconds": seconds, "blocking_s": blocking_s})
    os._exit(0)  # Orbax's threads are not waited for: after a failed save some of them never end


def _noise(shapes: dict[str, list[tuple[list[int], str]]]) -> tuple[Any, int]:
    """A state of noise and its bytes. Noise hardly compresses; an optimizer's first zeros would flatter the disk."""
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from preflight.training.state import TrainState

    rng = np.random.default_rng(0)

    def leaf(shape: list[int], dtype: str) -> Any:
        return jnp.asarray(rng.standard_normal(tuple(shape), np.float32)).astype(dtype)

    parts = {
        part: {f"leaf_{i:05d}": leaf(shape, dtype) for i, (shape, dtype) in enumerate(leaves)}
        for part, leaves in shapes.items()
    }
    state = TrainState(
        step=jnp.int32(1),
        params=nnx.State(parts["params"]),
        opt_state=parts["opt_state"],
        ema_params=nnx.State(parts["ema_params"]) if parts["ema_params"] else None,
    )
    return state, sum(array.nbytes for leaves in parts.values() for array in leaves.values())


@contextlib.contextmanager
def _memory_watch() -> Iterator[list[int]]:
    """This process's memory in bytes, at the start and then every 50 ms."""
    from preflight.telemetry.memory import process_memory

    def held() -> int:
        memory = process_memory(os.getpid())
        return 0 if memory is None else memory.rss if memory.pss is None else memory.pss

    seen, stop = [held()], threading.Event()

    def look() -> None:
        while not stop.wait(_PERIOD_S):
            seen.append(held())

    thread = threading.Thread(target=look, name="memory watch", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _flush(folder: Path) -> int:
    """Waits until the files are on the disk, not in the page cache; gives their bytes."""
    total = 0
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            total += path.stat().st_size
    return total


def _say(answer: dict[str, Any]) -> None:
    # Nobody may be there to hear it.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(answer))
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        keep(Path(sys.argv[2]), float(sys.argv[3]))
    else:
        write(Path(sys.argv[2]))
