"""The joined stream is the plain decode of all its ids, whatever the ids and however they arrive."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import FAMILIES, TEXT, odd, tokenizer_of

from penstock.text.detokenizer import Detokenizer, StopStrings
from penstock.text.joiner import MAX_HELD_TOKENS, MAX_RUN_BYTES, ByteLevel, SentencePieces, Window
from penstock.text.tokenizer import Tokenizer

CASES_PER_FAMILY = 2_500  # 12,500 in all


def cut(ids: list[int], rng: random.Random) -> list[list[int]]:
    """The ids in steps of one to three tokens, as decoding with and without speculation brings them."""
    steps, at = [], 0
    while at < len(ids):
        size = rng.choice((1, 1, 1, 2, 3))
        steps.append(ids[at : at + size])
        at += size
    return steps


def stream(tokenizer: Tokenizer, steps: list[list[int]], prompt: list[int] | None = None, skip: bool = True) -> str:
    detokenizer = Detokenizer(tokenizer, prompt or [], skip)
    pieces = [detokenizer.push(step) for step in steps]
    return "".join([*pieces, detokenizer.flush()])


def test_each_family_has_the_scheme_that_is_meant_for_it():
    schemes = {name: type(tokenizer_of(name).scheme) for name in FAMILIES}
    assert schemes == {
        "byte level": ByteLevel,
        "sentence pieces": SentencePieces,
        "sentence pieces, no prefix": SentencePieces,
        "metaspace": SentencePieces,
        "word piece": Window,
    }


def test_the_joined_stream_is_the_plain_decode_for_random_ids(tokenizer):
    rng = random.Random(7)
    for _ in range(CASES_PER_FAMILY):
        ids = [rng.randrange(tokenizer.vocab_size + 3) for _ in range(rng.randrange(13))]
        skip = rng.random() < 0.5
        assert stream(tokenizer, cut(ids, rng), skip=skip) == tokenizer.decode(ids, skip), ids


def test_the_joined_stream_continues_a_prompt(tokenizer):
    rng = random.Random(8)
    for _ in range(500):
        prompt = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(1, 6))]
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(8))]
        before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + ids)
        text = stream(tokenizer, cut(ids, rng), prompt)
        if whole.startswith(before):  # else a character straddles the border, see the next test
            assert before + text == whole, (prompt, ids)


@pytest.mark.parametrize("family", ["byte level", "sentence pieces"])
def test_a_character_that_the_prompt_began_is_emitted_whole(family):
    tokenizer = tokenizer_of(family)
    first, *rest = byte_ids(tokenizer, "好".encode())
    assert stream(tokenizer, [[i] for i in rest], [first]) == "好"
    dot = tokenizer.token_to_id(".")
    assert stream(tokenizer, [[dot]], [first]) == "."  # never completed: that U+FFFD is the prompt's


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    if isinstance(tokenizer.scheme, ByteLevel):
        by_piece = {tokenizer.scheme[i]: i for i in range(tokenizer.vocab_size)}
        return [by_piece[bytes([b])] for b in data]
    return [tokenizer.token_to_id(f"<0x{b:02X}>") for b in data]


@pytest.mark.parametrize("family", ["byte level", "sentence pieces"])
@pytest.mark.parametrize("text", TEXT)
def test_no_push_ever_holds_a_part_of_a_character(family, text):
    tokenizer = tokenizer_of(family)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([i]) for i in byte_ids(tokenizer, text.encode())]
    assert "".join([*pieces, detokenizer.flush()]).strip() == text.strip()
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("family", ["byte level", "sentence pieces"])
def test_bytes_that_are_no_text_are_released_before_the_stream_ends(family):
    tokenizer = tokenizer_of(family)
    detokenizer = Detokenizer(tokenizer)
    shown = [detokenizer.push(byte_ids(tokenizer, b"\xff")) for _ in range(MAX_RUN_BYTES + 5)]
    assert len("".join(shown)) >= 5


def test_a_long_run_of_byte_tokens_streams_once_it_is_clear_that_it_is_a_script():
    tokenizer = tokenizer_of("sentence pieces")
    detokenizer = Detokenizer(tokenizer)
    text = "ሰላም ለዓለም " * 8
    shown = [detokenizer.push([i]) for i in byte_ids(tokenizer, text.encode())]
    assert not any(shown[:MAX_RUN_BYTES])
    late = shown[MAX_RUN_BYTES:]
    assert sum(map(bool, late)) > len(late) // 4
    assert "".join([*shown, detokenizer.flush()]) == text


def test_the_window_waits_for_a_whole_character_but_not_for_ever():
    tokenizer = Tokenizer(odd())
    assert isinstance(tokenizer.scheme, Window)
    first, second, third = (tokenizer.token_to_id(char) for char in "åİ½")
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([i]) for i in (first, second, third)] == ["", "", bytes([0xE5, 0x8E, 0xBD]).decode()]
    assert any(detokenizer.push([second]) for _ in range(MAX_HELD_TOKENS + 2))


# ---- stop strings


def reference(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Read the full text character by character; the first stop string to be complete cuts it."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


texts = st.text("ab.\n", max_size=24)
stop_lists = st.lists(st.text("ab.\n", min_size=1, max_size=5), max_size=4)


@settings(max_examples=1500, deadline=None)
@given(text=texts, stops=stop_lists, include=st.booleans(), cuts=st.lists(st.integers(0, 24), max_size=8))
def test_stop_strings_cut_a_stream_as_they_cut_the_full_text(text, stops, include, cuts):
    borders = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    watcher = StopStrings(stops, include)
    out, hit = "", None
    for start, end in itertools.pairwise(borders):
        new, hit = watcher.push(text[start:end])
        out += new
        if hit is not None:
            break
        seen = text[:end]
        held = seen[len(out) :]
        assert seen.startswith(out)
        assert held == longest_beginning(seen, stops)
    if hit is None:
        out += watcher.flush()
    assert (out, hit) == reference(text, stops, include)


def longest_beginning(text: str, stops: list[str]) -> str:
    """The longest end of a text that some stop string begins with, and is not all of."""
    ends = [stop[:k] for stop in stops for k in range(1, len(stop)) if text.endswith(stop[:k])]
    return max(ends, key=len, default="")


def test_nothing_comes_after_a_stop_string():
    watcher = StopStrings(["END"])
    assert watcher.push("one E") == ("one ", None)
    assert watcher.push("ND two") == ("", "END")
    assert watcher.push("three") == ("", "END")
    assert watcher.flush() == ""


def test_no_stop_strings_change_nothing():
    watcher = StopStrings([])
    assert watcher.push("anything") == ("anything", None)
    assert watcher.flush() == ""


@pytest.mark.parametrize("stop", ["]", "^", "-", "\\", "a]", "\n\n", "👨‍👩‍👧"])
def test_signs_that_mean_something_in_a_pattern_are_plain_text(stop):
    watcher = StopStrings([stop, "^^"])
    out, hit = watcher.push(f"before{stop}after")
    assert (out, hit) == ("before", stop)
