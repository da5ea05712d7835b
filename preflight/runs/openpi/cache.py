"""What openpi fetches from the network, answered from its cache: no check may wait for a download."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from preflight.errors import DataError
from preflight.runs.openpi.install import ONE_AT_A_TIME, openpi


class NotCachedError(FileNotFoundError):
    """Something that openpi would have to download; openpi itself takes it for a missing file."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{url} is not in openpi's cache")
        self.url = url


def cached(url: str) -> Path | None:
    """Where something lies on this machine that openpi names by a path or an address; None where it would be fetched.

    The rule is that of `openpi.shared.download`, whose own function makes the folder.
    """
    path = place_of(url)
    return path if path.exists() else None


def place_of(url: str) -> Path:
    """Where something lies, or would lie once it is fetched."""
    parsed = urlparse(url)
    return cache_folder() / parsed.netloc / parsed.path.strip("/") if parsed.scheme else Path(url).resolve()


def cache_folder() -> Path:
    """`$OPENPI_DATA_HOME`, or openpi's default."""
    return Path(os.environ.get("OPENPI_DATA_HOME") or "~/.cache/openpi").expanduser()


def fetch_command(url: str) -> str:
    """The command that puts something into openpi's cache, run where openpi runs."""
    return f'python -c "from openpi.shared import download; download.maybe_download({url!r})"'


@contextlib.contextmanager
def from_cache(*, stop_at_first: bool = False) -> Iterator[list[str]]:
    """While it holds, openpi finds what is in its cache and downloads nothing.

    A tokenizer that cannot be made without the network is replaced by one that says so when it is used: all the rest
    of a data config can then still be looked at.

    Args:
        stop_at_first: Raises at the first address or path that is asked for, cached or not, to learn which it is.

    Yields:
        The addresses and paths that were asked for, so far.

    Raises:
        NotCachedError: From within, where something is not there.
    """
    download, tokenizers = openpi("shared.download"), openpi("models.tokenizer")
    asked: list[str] = []

    def maybe_download(url: str, **_: Any) -> Path:
        asked.append(str(url))
        path = None if stop_at_first else cached(str(url))
        if path is None:
            raise NotCachedError(str(url))
        return path

    with ONE_AT_A_TIME, contextlib.ExitStack() as changed:
        _replace(changed, download, "maybe_download", maybe_download)
        for name in ("PaligemmaTokenizer", "FASTTokenizer"):
            if hasattr(tokenizers, name):
                _replace(changed, tokenizers, name, _or_missing(getattr(tokenizers, name)))
        yield asked


def _replace(stack: contextlib.ExitStack, module: Any, name: str, value: Any) -> None:
    stack.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, value)


def _or_missing(make: Any) -> Any:
    def tokenizer(*args: Any, **kwargs: Any) -> Any:
        try:
            return make(*args, **kwargs)
        except NotCachedError as error:
            return MissingTokenizer(
                f"the tokenizer is not here: {error.url} is not in {cache_folder()}",
                f"where there is a network: {fetch_command(error.url)}; or copy the file to {place_of(error.url)}",
            )
        except OSError as error:
            # transformers says so of a tokenizer on the Hub that is not in its cache.
            first = str(error).strip().splitlines()[0][:200]
            return MissingTokenizer(
                f"the tokenizer {make.__name__} is not here: {first}",
                "where there is a network: hf download physical-intelligence/fast",
            )

    return tokenizer


class MissingTokenizer:
    """In the place of a tokenizer whose files are not on this machine."""

    def __init__(self, message: str, hint: str) -> None:
        self.error = DataError(message, hint)

    def tokenize(self, *_: Any, **__: Any) -> Any:
        """Raises: it is not here."""
        raise self.error

    extract_actions = tokenize
