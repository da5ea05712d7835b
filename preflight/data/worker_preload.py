"""What the worker server imports once, so that each loader worker begins as a fork that has it all.

The server drops an ImportError without a word; the worker then meets the same error itself and reports it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import shutil
import signal

# Ctrl-C goes to the whole process group, Slurm's SIGTERM to every process of a job: the parent answers them, the server
# and the workers that inherit this do not. They end with their parent.
for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, signal.SIG_IGN)

# A worker is one thread, and a forked process with the threads of a BLAS pool would be missing them.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

# The process that did these imports; in a worker it is the parent.
SERVER_PID = os.getpid()


def _remove_socket_folder() -> None:
    """Tidies up after a parent that was killed; one that lives does so itself, and may use the folder again."""
    parent, _, folder = os.environ.get("PREFLIGHT_SOCKET_FOLDER", "").partition(":")
    if folder and os.getppid() != int(parent):
        shutil.rmtree(folder, ignore_errors=True)


# The server's own, for workers end without it. It ends when nobody is left who could ask it for workers.
atexit.register(_remove_socket_folder)

MODULES = (
    "numpy",
    "pyarrow.parquet",
    "av",
    "PIL.Image",
    "preflight.data.dataset",
    "preflight.data.worker",
)

for _module in (*MODULES, *filter(None, os.environ.get("PREFLIGHT_WORKER_MODULES", "").split(","))):
    with contextlib.suppress(Exception):
        importlib.import_module(_module)

# Out of the collector's sight the imported objects' pages stay shared between the forks.
gc.collect()
gc.freeze()
