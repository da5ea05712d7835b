"""Weights & Biases: chosen once, and never a reason for training to stop."""

from __future__ import annotations

import dataclasses
import logging
import netrc
import os
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

logger = logging.getLogger(__name__)

_FINISH_S = 120.0
_SERVER = "https://api.wandb.ai"

Mode = Literal["online", "offline", "disabled"]


@dataclasses.dataclass(frozen=True)
class TrackingChoice:
    """What wandb will do, and why."""

    mode: Mode
    reason: str


Ping = Callable[[str, int], str | None]


def choose_mode(enabled: bool, environ: Mapping[str, str] = os.environ, *, ping: Ping | None = None) -> TrackingChoice:
    """Chooses wandb's mode once, before anything is started; reads the environment and `~/.netrc`.

    Args:
        enabled: Whether the config wants wandb.
        environ: Environment variables.
        ping: Asks whether a server answers at a host and port, and says why where it does not; it is asked where wandb
            would be online, which it is not if nobody answers. Without it, no server is asked.
    """
    choice = _choose_mode(enabled, environ)
    if choice.mode != "online" or ping is None:
        return choice
    place = server(environ)
    if place is None:
        return TrackingChoice("offline", "WANDB_BASE_URL is no web address")
    host, port = place
    why = ping(host, port)
    return choice if why is None else TrackingChoice("offline", f"{host}:{port} does not answer: {why}")


def server(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Host and port that wandb would speak to first: its server, or the proxy before it; None: no web address."""

    def variable(name: str) -> str:
        return environ.get(name.lower()) or environ.get(name.upper()) or ""

    try:
        url = urlparse(environ.get("WANDB_BASE_URL", _SERVER))
        proxy = variable(f"{url.scheme}_proxy") if url.hostname else ""
        direct = [name.strip().lstrip(".") for name in variable("no_proxy").split(",")]
        if proxy and not any((name and f".{url.hostname}".endswith(f".{name}")) or name == "*" for name in direct):
            url = urlparse(proxy if "://" in proxy else f"http://{proxy}")
        return None if url.hostname is None else (url.hostname, url.port or (80 if url.scheme == "http" else 443))
    except ValueError:
        return None


def _choose_mode(enabled: bool, environ: Mapping[str, str]) -> TrackingChoice:
    if not enabled:
        return TrackingChoice("disabled", "wandb_enabled is false")
    asked = environ.get("WANDB_MODE", "").strip().lower()
    if asked in ("disabled", "dryrun", "offline"):
        return TrackingChoice("disabled" if asked == "disabled" else "offline", f"WANDB_MODE={asked}")
    if environ.get("WANDB_API_KEY"):
        return TrackingChoice("online", "WANDB_API_KEY is set")
    try:
        host = urlparse(environ.get("WANDB_BASE_URL", _SERVER)).hostname or "api.wandb.ai"
    except ValueError:
        return TrackingChoice("offline", "WANDB_BASE_URL is no web address")
    path = Path(environ.get("NETRC") or Path(environ.get("HOME", "~")).expanduser() / ".netrc")
    try:
        if netrc.netrc(path).authenticators(host):
            return TrackingChoice("online", f"{path} holds a login for {host}")
    except (OSError, netrc.NetrcParseError):
        pass
    return TrackingChoice("offline", "no credentials: neither WANDB_API_KEY nor a login in ~/.netrc")


class Tracker:
    """A wandb run, or nothing; a failure of wandb is warned about once and then left alone."""

    def __init__(self, run: Any) -> None:
        self._run = run

    @classmethod
    def start(
        cls, choice: TrackingChoice, *, project: str, name: str, config: dict[str, Any], folder: Path, resume: bool
    ) -> Tracker:
        """Starts wandb in the run's folder; keeps its id in `wandb_id.txt` and goes on under it when resumed."""
        if choice.mode == "disabled":
            return cls(None)
        id_file = folder / "wandb_id.txt"
        # Reports of wandb's own errors to its makers would wait for a network that may not be there.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb

            run_id = id_file.read_text().strip() if resume and id_file.exists() else None
            run = wandb.init(
                project=project,
                name=name,
                config=config,
                dir=folder,
                mode=choice.mode,
                id=run_id,
                resume="allow" if run_id else None,
                # What is asked for is the verdict and the metrics, not wandb's banner or a copy of the terminal.
                settings=wandb.Settings(silent=True, console="off", init_timeout=30),
            )
            id_file.write_text(f"{run.id}\n")
        except Exception as error:  # noqa: BLE001
            logger.warning("wandb could not be started, training goes on without it: %s", error)
            return cls(None)
        return cls(run)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Logs values of a step."""
        self._guard(lambda run: run.log(values, step=step))

    def log_images(self, key: str, images: Sequence[Any], captions: Sequence[str], step: int) -> None:
        """Logs pictures, uint8 `[h, w, 3]` each."""

        def log(run: Any) -> None:
            import wandb

            pictures = [wandb.Image(i, caption=c) for i, c in zip(images, captions, strict=True)]
            run.log({key: pictures}, step=step)

        self._guard(log)

    def alert(self, title: str, text: str, severity: str) -> None:
        """Has wandb tell people, by mail or chat as they set it up there: of a "note", a "warn" or a "stop"."""
        level = {"note": "INFO", "stop": "ERROR"}.get(severity, "WARN")
        self._guard(lambda run: run.alert(title=title, text=text, level=level))

    def finish(self) -> None:
        """Ends the run; gives up on an upload that does not end."""
        thread = threading.Thread(target=self._guard, args=(lambda run: run.finish(),), daemon=True)
        thread.start()
        thread.join(_FINISH_S)
        if thread.is_alive():
            logger.warning("wandb is still uploading after %g s and is left alone", _FINISH_S)

    def sync_command(self) -> str | None:
        """The command that uploads an offline run, None where there is nothing to upload."""
        if self._run is None or not getattr(self._run, "offline", False):
            return None
        return shlex.join(["wandb", "sync", str(Path(self._run.dir).parent)])

    def _guard(self, action: Any) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # noqa: BLE001
            logger.warning("wandb failed, training goes on without it: %s", error)
            self._run = None
