"""`tracking.*`: where the metrics go."""

from __future__ import annotations

import importlib.util
import socket
from urllib.parse import urlparse

from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped, warned
from preflight.training.tracking import choose_mode

_PING_S = 3.0


def _wandb(context: CheckContext) -> Outcome:
    environ = context.probes.environ
    choice = choose_mode(context.run.facts.wandb_enabled, environ)
    if choice.mode == "disabled":
        return skipped(f"wandb is off: {choice.reason}; metrics go to metrics.jsonl")
    if importlib.util.find_spec("wandb") is None:
        return failed("wandb is not installed", hint=Hint(text="install it", commands=("pip install wandb",)))
    if choice.mode == "offline":
        return passed(f"wandb runs offline ({choice.reason}); metrics also go to metrics.jsonl")
    url = urlparse(environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host, port = url.hostname or "api.wandb.ai", url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=_PING_S).close()
    except OSError as error:
        return warned(
            f"wandb would run online ({choice.reason}), but {host}:{port} does not answer within {_PING_S:g} "
            f"s: {error}",
            hint=Hint(text="run offline and sync later", commands=("export WANDB_MODE=offline",)),
        )
    return passed(f"wandb runs online ({choice.reason}); {host} answers")


CHECKS = (
    Check(
        id="tracking.wandb",
        title="wandb can log",
        level="quick",
        severity="fail",
        failures=("F49",),
        run=_wandb,
        doc="Says which mode wandb will run in and why (WANDB_MODE, WANDB_API_KEY, ~/.netrc). Offline is a "
        "state, not a failure. Online, the server is asked once, for at most three seconds: wandb itself would "
        "block the start for 90.",
    ),
)
