"""Secrets are withheld: a report is sent around, and nobody reads it for keys before."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

WITHHELD = "(withheld)"

# As the last or only words of a name: `model.max_token_len` and `data.tokenizer` are none.
_SECRET_NAME = re.compile(
    r"(?:^|[^a-z])(?:api_?key|access_?key(?:_?id)?|private_?key|secret|secrets|secret_?key|password|passwd|passphrase"
    r"|credentials?|token|auth)$",
    re.IGNORECASE,
)
_FORMS = (
    # NAME=value, as in an environment or a command line that a message quotes.
    (re.compile(r"\b([A-Z0-9_]*(?:API_?KEY|ACCESS_KEY|SECRET|TOKEN|PASSWORD|PASSWD)[A-Z0-9_]*\s*[=:]\s*)\S+"), r"\1"),
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/@]+@"), r"\1"),  # user and password in an address
    (re.compile(r"([?&](?:token|sig|signature|key|X-Amz-[A-Za-z-]+)=)[^\s&#]+", re.IGNORECASE), r"\1"),
    (re.compile(r"\b(?:hf|ghp|gho|github_pat|glpat)_[A-Za-z0-9_]{16,}"), ""),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), ""),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"), ""),
    (re.compile(r"\b(Bearer\s+)[A-Za-z0-9._~+/-]{8,}=*"), r"\1"),
)
_SHORTEST = 8  # characters; a shorter value stands in a text by chance


def withhold(value: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """A plain value without what looks like a secret, by its name, by its form, or because the environment holds it.

    Args:
        value: Dicts, lists, strings, numbers, booleans and None.
        environ: Environment variables; the values of those with a secret's name are looked for.
    """
    known = sorted(
        (found for name, found in environ.items() if _SECRET_NAME.search(name) and len(found) >= _SHORTEST),
        key=len,
        reverse=True,
    )
    return _withhold(value, known)


def _withhold(value: Any, known: list[str]) -> Any:
    if isinstance(value, str):
        for secret in known:
            value = value.replace(secret, WITHHELD)
        for form, kept in _FORMS:
            value = form.sub(kept + WITHHELD, value)
        return value
    if isinstance(value, dict):
        return {
            _withhold(key, known): WITHHELD
            if isinstance(item, str | list | dict) and item and _SECRET_NAME.search(key)
            else _withhold(item, known)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_withhold(item, known) for item in value]
    return value
