"""What the worker server imports once, so that each loader worker begins as a fork that has it all.

The server drops an ImportError without a word; the worker then meets the same error itself and reports it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal

# Ctrl-C goes to the whole process group: the parent answers it, the server and the workers that inherit this do not.
signal.signal(signal.SIGINT, signal.SIG_IGN)

# A worker is one thread, and a forked process with the threads of a BLAS pool would be missing them.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

# The process that did these imports; in a worker it is the parent.
SERVER_PID = os.getpid()

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
