"""The server that loader workers are forked from, with everything imported."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
import tempfile
from collections.abc import Iterator, Sequence

from preflight.data.worker import SOCKET_FOLDER, WORKER_MODULES
from preflight.errors import PreflightError

# What the server was last asked to import; asked for again when one that died has to be replaced.
_asked: list[str] = []


def start_worker_server(modules: Sequence[str] = ()) -> None:
    """Starts the server that loader workers are forked from, if it does not run yet.

    Returns at once; the server imports in the background. Called early, it is ready when the first loader wants
    workers.

    Args:
        modules: What else the samples are made with, imported once for all workers.

    Raises:
        PreflightError: The folder for temporary files has too long a name for the server's socket.
    """
    if modules:
        _asked[:] = modules
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preflight.data.worker_preload"])
    with contextlib.ExitStack() as environment:
        for name, value in (
            # The server begins with the working directory on sys.path, where a folder of the user's could shadow a
            # package.
            ("PYTHONSAFEPATH", "1"),
            # Transforms that use jax would each take hundreds of MiB of the GPU (grain#820).
            ("JAX_PLATFORMS", "cpu"),
            (WORKER_MODULES, ",".join(modules)),
            # multiprocessing removes it when this process ends; if that is killed, the server does.
            (SOCKET_FOLDER, f"{os.getpid()}:{multiprocessing.util.get_temp_dir()}"),
        ):
            environment.enter_context(_environment(name, value))
        try:
            multiprocessing.forkserver.ensure_running()
        except OSError as error:
            if "AF_UNIX path too long" not in str(error):
                raise
            folder = tempfile.gettempdir()
            raise PreflightError(
                f"the folder for temporary files has too long a name for a socket: {folder}",
                "name a shorter one (a socket's path has some 100 characters): TMPDIR=/tmp",
            ) from error


def renew_worker_server() -> None:
    """Starts the server again if it has died, with the modules that it had."""
    start_worker_server(tuple(_asked))


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
