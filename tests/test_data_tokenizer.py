import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from preflight.data import tokenizer
from preflight.data.tokenizer import BOS, PAD, VOCAB_SIZE, clean, count_tokens, decode, discretize, tokenize

# Lone surrogates are no text; they cannot be encoded as UTF-8.
text = st.text(st.characters(exclude_categories=["Cs"]))


@given(text)
@example("")
@example("put the lighter in the cup")
@example("_leading underscore")
@example("füße ☕ 把打火机放进杯子里 🤖")
@example("a  b\t\r\nc")
def test_any_text_comes_back(prompt):
    ids, mask = tokenize(prompt, max(1, count_tokens(prompt)))
    assert mask.all()
    assert decode(ids) == clean(prompt)


@given(text, st.integers(1, 64))
def test_padding_and_truncation_keep_a_prefix(prompt, max_len):
    full, _ = tokenize(prompt, count_tokens(prompt))
    ids, mask = tokenize(prompt, max_len)
    kept = min(max_len, count_tokens(prompt))
    assert ids.shape == mask.shape == (max_len,)
    assert ids.dtype == np.int32
    assert mask.dtype == np.bool_
    assert mask.tolist() == [True] * kept + [False] * (max_len - kept)
    assert ids[:kept].tolist() == full[:kept].tolist()
    assert (ids[kept:] == PAD).all()
    assert (ids >= 0).all()
    assert (ids < VOCAB_SIZE).all()


def test_known_words_are_one_token_each():
    # begin, six words, newline
    assert count_tokens("put the lighter in the cup") == 8
    ids, mask = tokenize("put the lighter in the cup", 48)
    assert ids[0] == BOS
    assert ids[7] == 4 + ord("\n")
    assert ids[2] == ids[5]  # "the"
    assert mask.sum() == 8


def test_ids_are_frozen():
    """A change here would make models that are already trained read other words."""
    assert tokenize("Put a cup", 8)[0].tolist() == [2, 36, 84, 121, 120, 260, 320, 14]


@pytest.mark.parametrize(
    "prompt",
    [
        "pick up the red cube with the left arm, then hand it over to the right arm and place it in the box",
        "open the top drawer, put the black marker inside and close it gently",
        "fold_the_blue_towel_twice_and_stack_it_on_the_shelf",
    ],
)
def test_usual_prompts_fit_in_48_tokens(prompt):
    assert count_tokens(prompt) <= 48


def test_underscores_and_line_breaks_are_spaces():
    assert tokenize(" put_the\nlighter ", 16)[0].tolist() == tokenize("put the lighter", 16)[0].tolist()


def test_vocabulary_is_small_and_unambiguous():
    assert len(set(tokenizer._PIECES)) == len(tokenizer._PIECES)
    assert 4 + 256 + len(tokenizer._PIECES) <= VOCAB_SIZE


def test_half_a_character_is_marked():
    ids, _ = tokenize("☕", 4)  # begin, space, two of three bytes
    assert decode(ids) == "\ufffd"


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="max_len must be at least 1, not 0"):
        tokenize("cup", 0)
    with pytest.raises(ValueError, match="token 9999 is not in the vocabulary"):
        decode([9999])


def test_a_lone_surrogate_becomes_a_question_mark():
    assert decode(tokenize("a\ud800b", 8)[0]) == "a?b"


states = st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=32).map(lambda x: np.array(x, np.float32))


def test_the_state_is_read_in_256_bins():
    edges = [-1.0, -1 + 1 / 128, 0.0, 1 - 1 / 128]
    assert discretize(np.array(edges)).tolist() == [0, 1, 128, 255]
    just_below = np.nextafter(edges, -9)
    assert discretize(just_below).tolist() == [-1, 0, 127, 254]
    # openpi's: -1 below the range, the last bin above it.
    assert discretize(np.array([-3.0, 1.0, 3.0])).tolist() == [-1, 255, 255]


@given(text, states)
@example("put_the lighter\nin the cup", np.array([0.0, -1.5, 1.0], np.float32))
def test_pi05s_prompt_is_openpis_text(prompt, state):
    ids, mask = tokenize(prompt, count_tokens(prompt, len(state)), state)
    numbers = [sum(x >= k / 128 for k in range(-128, 128)) - 1 for x in state.tolist()]
    assert decode(ids) == f"Task: {clean(prompt)}, State: {' '.join(map(str, numbers))};\nAction: "
    assert mask.tolist() == (ids != PAD).tolist()
    assert ids[0] == BOS


@given(text, states, st.integers(0, 40))
def test_what_is_cut_is_the_task_never_the_state(prompt, state, room):
    max_len = count_tokens("", len(state)) + room
    ids, mask = tokenize(prompt, max_len, state)
    assert ids.shape == mask.shape == (max_len,)
    whole, _ = tokenize(prompt, count_tokens(prompt, len(state)), state)
    kept = decode(ids)
    assert kept[kept.rindex(", State: ") :] == decode(whole)[decode(whole).rindex(", State: ") :]
    # The task's tokens are the same whatever the state's numbers are.
    head = min(count_tokens(prompt, len(state)), max_len) - count_tokens("", len(state)) + len("^ Task: ")
    other, _ = tokenize(prompt, max_len, np.full(len(state), 0.9, np.float32))
    assert ids[:head].tolist() == other[:head].tolist() == whole[:head].tolist()


def test_the_states_text_is_tokenized_as_any_text():
    state = np.linspace(-1.5, 1.5, 32, dtype=np.float32)
    ids, mask = tokenize("cup", 200, state)
    written, _ = tokenize(decode(ids[mask]), 400)
    # Without the newline that ends a prompt, and the space and the line break that cleaning changes.
    assert np.flatnonzero(ids[mask] != written[: mask.sum()]).tolist() == [mask.sum() - 9, mask.sum() - 1]


def test_a_state_without_room_is_named():
    with pytest.raises(ValueError, match="max_len 30 has no room for a state of 14 dimensions"):
        tokenize("cup", 30, np.zeros(14))


def test_import_is_light():
    code = "import sys, preflight.data.tokenizer; print([m for m in ('jax', 'torch', 'lerobot') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
