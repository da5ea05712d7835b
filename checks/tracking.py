"""`tracking.*`: where the metrics go."""

from __future__ import annotations

import importlib.util
from urllib.parse import urlparse

from checks.context import CheckContext
from preflight.checklist import Check, Hint, Outcome, failed, passed, skipped, warned
from preflight.telemetry.network import PING_S, unreachable
from preflight.training.tracking import choose_mode


def _wandb(context: CheckContext) -> Outcome:
    environ = context.probes.environ
    choice = choose_mode(context.run.facts.wandb_enabled, environ)
    if choice.mode == "disabled":
        return skipped(f"wandb is off: {choice.reason}; metrics go to metrics.jsonl")
    if importlib.util.find_spec("wandb") is None:
        return failed("wandb is not installed", hint=Hint(text="install it", commands=("pip install wandb",)))
    if choice.mode == "offline":
        return passed(f"wandb runs offline ({choice.reason}); metrics also go to metrics.jsonl")
    base = environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        url = urlparse(base)
        host, port = url.hostname, url.port or (80 if url.scheme == "http" else 443)
    except ValueError:
        host = None
    if host is None:
        return failed(f"WANDB_BASE_URL={base!r} is no web address", hint=Hint(text="for example https://api.wandb.ai"))
    if (error := unreachable(host, port)) is not None:
        return warned(
            f"wandb would run online ({choice.reason}), but {host}:{port} does not answer within {PING_S:g} s: {error}",
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
