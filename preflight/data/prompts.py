"""The prompts of a dataset's tasks: whether they fit into the model's tokens, and their tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from preflight.data.tokenizer import count_tokens, tokenize
from preflight.errors import DataError

logger = logging.getLogger(__name__)


def require_room(prompts: Sequence[str], max_len: int, state_width: int | None) -> None:
    """Warns of prompts whose end will be cut, and refuses a state that could not stay whole.

    Args:
        prompts: The tasks' texts.
        max_len: The model's prompt tokens.
        state_width: Dimensions of the state that pi0.5 reads in its prompt; None for pi0.

    Raises:
        DataError: The state alone does not fit.
    """
    longest = max(prompts, key=lambda prompt: count_tokens(prompt, state_width), default="")
    need = count_tokens(longest, state_width)
    if state_width is not None and count_tokens("", state_width) > max_len:
        raise DataError(
            f"the prompt's {max_len} tokens have no room for the state's {state_width} dimensions, which pi0.5 reads "
            "in it",
            f"Set model.max_token_len to at least {need}: what it takes with the longest task.",
        )
    if need > max_len:
        with_state = "" if state_width is None else " with the state"
        logger.warning(
            "the prompt %r takes %d tokens%s and its end is cut: model.max_token_len is %d",
            longest,
            need,
            with_state,
            max_len,
        )


def tokenize_all(prompts: Sequence[str], max_len: int) -> tuple[Int32[np.ndarray, "p l"], Bool[np.ndarray, "p l"]]:
    """Tokens and mask of each prompt without a state, made once."""
    pairs = [tokenize(prompt, max_len) for prompt in prompts]
    return np.stack([tokens for tokens, _ in pairs]), np.stack([mask for _, mask in pairs])
