"""What the Hugging Face Hub says about a dataset, asked with a limit and without downloading anything."""

from __future__ import annotations

import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

TIMEOUT_S = 3.0

# Of huggingface_hub.constants; either turns the network off.
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "ON", "YES", "TRUE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubDataset:
    """What the Hub says; None where it did not say so in time."""

    exists: bool  # False: there is none, or none that one may know of with this token; the Hub makes no difference
    token: bool  # whether it was asked with a token
    private: bool = False
    gated: bool = False  # its files are only for accounts to which its owner grants them
    files: int | None = None  # on the main branch
    size_bytes: int | None = None  # of them
    revisions: list[str] | None = None  # branches and tags


def ask_hub(repo_id: str, *, endpoint: str | None = None, timeout_s: float = TIMEOUT_S) -> HubDataset | str:
    """Asks the Hub about a dataset.

    Args:
        repo_id: "user/name".
        endpoint: The Hub's address; None for `$HF_ENDPOINT`, or https://huggingface.co.
        timeout_s: Seconds that all of it may take, the look-up of the Hub's name among them.

    Returns:
        What it says, or why it could not be asked.
    """
    for name in _OFFLINE:
        if os.environ.get(name, "").upper() in _TRUE:
            return f"{name} is set"
    try:
        import huggingface_hub
    except ImportError:
        return "huggingface_hub is not installed"
    # Whatever hangs, a thread of its own does: not every request of huggingface_hub takes a time-out.
    answers: queue.SimpleQueue[HubDataset | str | None] = queue.SimpleQueue()
    api = huggingface_hub.HfApi(endpoint=endpoint or os.environ.get("HF_ENDPOINT") or None)
    arguments = (api, repo_id, timeout_s, answers.put)
    threading.Thread(target=_ask, args=arguments, name=f"hub {repo_id}", daemon=True).start()
    latest: HubDataset | str = f"{api.endpoint} does not answer within {timeout_s:g} s"
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        try:
            answer = answers.get(timeout=left)
        except queue.Empty:
            break
        if answer is None:
            break
        latest = answer
    return latest


def hf_command(*words: str) -> tuple[str, ...]:
    """The words of a command of Hugging Face's own, by the name that it has in the installed version.

    Args:
        words: As `hf` takes them: "download", …, or "auth", "login".
    """
    from importlib import metadata  # takes longer to import than all that is asked of it

    try:
        major, minor = (int(part) for part in metadata.version("huggingface_hub").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        major, minor = 1, 0
    if (major, minor) >= (0, 34):
        return ("hf", *words)
    return ("huggingface-cli", *(words[1:] if words[:1] == ("auth",) else words))


def _ask(api: Any, repo_id: str, timeout_s: float, answer: Callable[[HubDataset | str | None], None]) -> None:
    """Answers more and more of it, then None."""
    known: HubDataset | None = None
    try:
        known = _existence(api, repo_id, timeout_s)
        answer(known)
        if known.exists:
            refs = api.list_repo_refs(repo_id, repo_type="dataset")
            known = dataclasses.replace(known, revisions=[ref.name for ref in (*refs.branches, *refs.tags)])
            answer(known)
            # Sizes last: of a dataset with a file an episode, they are the answer that takes longest.
            files = api.dataset_info(repo_id, timeout=timeout_s, files_metadata=True).siblings or []
            answer(dataclasses.replace(known, size_bytes=sum(file.size or 0 for file in files)))
    except Exception as error:  # noqa: BLE001  (a network fails in many ways, and none of them is ours)
        # Which of two clocks with one limit strikes first is chance: a time-out is told as silence is.
        if known is None and not _is_time_out(error):
            answer(_reason(error))
    finally:
        answer(None)


def _existence(api: Any, repo_id: str, timeout_s: float) -> HubDataset:
    from huggingface_hub import get_token
    from huggingface_hub.utils import GatedRepoError, HfHubHTTPError

    token = get_token() is not None
    try:
        info = api.dataset_info(repo_id, timeout=timeout_s)
    except GatedRepoError:
        return HubDataset(exists=True, token=token, gated=True)
    except HfHubHTTPError as error:
        # Without a token the Hub answers 401 for what is private and for what is not there alike, else 404.
        if _status(error) == 404 or (_status(error) == 401 and not token):
            return HubDataset(exists=False, token=token)
        raise
    return HubDataset(
        exists=True,
        token=token,
        private=bool(info.private),
        gated=bool(info.gated),
        files=len(info.siblings) if info.siblings is not None else None,
    )


def _is_time_out(error: Exception) -> bool:
    # By name: huggingface_hub asks through requests before 1.0, and through httpx from then on.
    return any("Timeout" in kind.__name__ for kind in type(error).__mro__)


def _reason(error: Exception) -> str:
    status = _status(error)
    if status == 429:
        return "it answers that there were too many requests from here (HTTP 429)"
    if status == 401:
        return "it refuses the token (HTTP 401)"
    if status is not None:
        return f"it answers HTTP {status}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
