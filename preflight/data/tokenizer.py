r"""A small tokenizer for the demo model: bytes, plus whole words that robot instructions are made of.

It needs no download, and its ids stay below 512, so that a toy model's embedding stays small. Prompts are prepared as
pi0 prepares them for PaliGemma: begin-of-sequence, the cleaned text, a newline; or as pi0.5 does, with the robot's
state as text: "Task: put the lighter in the cup, State: 127 3 255;\nAction: ". It is lossless: any text comes back.
"""

import functools
import re

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

VOCAB_SIZE = 512
PAD, EOS, BOS, UNK = 0, 1, 2, 3
_FIRST_BYTE = 4
_FIRST_PIECE = _FIRST_BYTE + 256

# pi0.5 reads each dimension of the state as one of so many equal bins over [-1, 1] (openpi, models/tokenizer.py).
STATE_BINS = 256
_BIN_EDGES = np.linspace(-1, 1, STATE_BINS + 1)[:-1]
_TASK, _STATE, _ACTION = "Task: ", ", State: ", ";\nAction: "
_STATE_CHARACTERS = 4  # of a dimension at most: a space and a number up to 255, or -1

# The order is the ids: add at the end, or models trained before will read other words. At most 252.
_WORDS = (
    "a above across add all an and another any apple around arm arms at away back bag ball banana basket bean bear "
    "bin bimanual black block blue board book both bottle bottom bowl box bread brown brush bucket button by cabinet "
    "can candy cap car carrot center chair clean close cloth cube clear coffee container cook cord corner counter "
    "cover cup cups cut cutting dish dishes door down drawer drop duck each edge egg empty end every fill first fish "
    "flip floor fold for fork from front fruit gently get give glass glove grab gray green grasp grip gripper hammer "
    "hand handle hang hat hold hole in insert inside into it item items jar key kitchen knife large left lid lift "
    "light lighter lower machine marker mat microwave middle move mug napkin near next object objects of off on one "
    "onto open orange other out oven over paper pan pen peg pick piece pink place plate plug point pot pour press "
    "pull purple push put rack reach red release remove return right robot rope rotate rubber scissors screw shake "
    "shelf shirt shoe side sink slide slowly small sock spatula sponge spoon spread square stack stand stir stove "
    "straw sweep switch table take tape tea the then these they this through tool top touch towel toy transfer trash "
    "tray triangle turn twist two under unfold unplug up upright using water wash white wipe with wood wooden yellow "
    "your zip pin pepper three"
)
_SUFFIXES = ("ing", "ed", "er")
# A word is a piece together with the space before it, so that "put the lighter" is three.
_PIECES = tuple(f" {word}" for word in _WORDS.split()) + _SUFFIXES
_ID = {piece: _FIRST_PIECE + k for k, piece in enumerate(_PIECES)}
_SPLIT = re.compile("|".join(map(re.escape, sorted(_PIECES, key=len, reverse=True))) + "|.", re.DOTALL)


def clean(prompt: str) -> str:
    """The text that is tokenized: surrounding space gone, underscores and line breaks turned into spaces."""
    return prompt.strip().replace("_", " ").replace("\n", " ")


def _encode(text: str) -> list[int]:
    ids: list[int] = []
    for piece in _SPLIT.findall(text):
        known = _ID.get(piece)
        ids.extend([known] if known is not None else (_FIRST_BYTE + b for b in piece.encode("utf-8", "replace")))
    return ids


@functools.lru_cache(maxsize=4096)
def _begin(text: str) -> tuple[int, ...]:
    # The first word is a piece too when a space stands before it; decode takes it off again.
    return (BOS, *_encode(f" {text}"))


def count_tokens(prompt: str, state_width: int | None = None) -> int:
    """How many tokens the prompt has before anything is cut, with all that is put around it.

    Args:
        prompt: Any text.
        state_width: Dimensions of the state that pi0.5 reads with it, each counted as the longest number there is;
            None for pi0, whose prompt has no state.
    """
    if state_width is None:
        return len(_begin(clean(prompt))) + 1
    return len(_begin(_TASK + clean(prompt))) + _reserved(state_width)


def discretize(state: Float[np.ndarray, " d"]) -> Int[np.ndarray, " d"]:
    """The bin of each dimension, 0 to 255 over [-1, 1]; -1 below that and 255 above it, as openpi has it."""
    return np.digitize(state, _BIN_EDGES) - 1


def tokenize(
    prompt: str, max_len: int, state: Float[np.ndarray, " d"] | None = None
) -> tuple[Int32[np.ndarray, " l"], Bool[np.ndarray, " l"]]:
    """Token ids of a prompt, padded or cut to ``max_len``.

    What is cut is the end of the task's text. The state behind it always stays whole; and room is kept for its longest
    numbers, so that a task reads the same in every frame.

    Args:
        prompt: Any text.
        max_len: Length of the result; ``count_tokens`` tells whether something was cut.
        state: The normalised state that pi0.5 reads in its prompt, without padding; None for pi0.

    Returns:
        The ids, and a mask that is True where there is a token.

    Raises:
        ValueError: ``max_len`` is less than 1, or has no room for the state.
    """
    if max_len < 1:
        raise ValueError(f"max_len must be at least 1, not {max_len}")
    if state is None:
        kept = [*_begin(clean(prompt)), _FIRST_BYTE + ord("\n")][:max_len]
    else:
        room = max_len - _reserved(len(state))
        if room < len(_begin(_TASK)):
            raise ValueError(f"max_len {max_len} has no room for a state of {len(state)} dimensions")
        numbers = " ".join(map(str, discretize(state).tolist()))
        # No piece begins or ends in this part, so its bytes are its tokens; looking for pieces would cost every sample.
        kept = [
            *_begin(_TASK + clean(prompt))[:room],
            *(_FIRST_BYTE + b for b in f"{_STATE}{numbers}{_ACTION}".encode()),
        ]
    ids = np.full(max_len, PAD, dtype=np.int32)
    ids[: len(kept)] = kept
    return ids, np.arange(max_len) < len(kept)


def _reserved(state_width: int) -> int:
    return len(_STATE) + _STATE_CHARACTERS * state_width - 1 + len(_ACTION)


def decode(ids: Int32[np.ndarray, " l"] | list[int]) -> str:
    """The text of token ids; padding and marks are skipped, an unknown token and half a character become "\ufffd".

    Raises:
        ValueError: An id is not in the vocabulary.
    """
    text = bytearray()
    for token in map(int, ids):
        if _FIRST_BYTE <= token < _FIRST_PIECE:
            text.append(token - _FIRST_BYTE)
        elif _FIRST_PIECE <= token < _FIRST_PIECE + len(_PIECES):
            text += _PIECES[token - _FIRST_PIECE].encode()
        elif token == UNK:
            text += "\ufffd".encode()
        elif token not in (PAD, EOS, BOS):
            raise ValueError(f"token {token} is not in the vocabulary of {_FIRST_PIECE + len(_PIECES)}")
    return text.decode("utf-8", "replace").removeprefix(" ").removesuffix("\n")
