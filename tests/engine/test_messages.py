"""The wire between a front end and an engine: what goes in comes out, and hostile bytes are one kind of error."""

from __future__ import annotations

from array import array

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.errors import InvalidRequest
from penstock.core.executor import ModelFacts, StateKind, StateSpec, TokenLogprobs
from penstock.core.request import Objective, Request, SamplingParams
from penstock.core.sequence import FinishReason
from penstock.engine import messages
from penstock.engine.messages import (
    Abort,
    Add,
    Beat,
    Died,
    Finish,
    Hello,
    Phase,
    Refused,
    Shutdown,
    Update,
    Updates,
    decode_command,
    decode_message,
    encode,
)
from penstock.engine.outputs import RequestStats

ints = st.integers(-(2**31), 2**31 - 1)
counts = st.integers(0, 2**31 - 1)
seconds = st.floats(0, 1e9)
times = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(max_size=12)  # no lone surrogates: hypothesis leaves them out where it says text
salts = st.text(st.characters(exclude_characters="@/\\\0", exclude_categories=["Cs"]), max_size=8)
limits = st.none() | st.floats(1e-6, 1e6)
objectives = st.builds(Objective, ttft_s=limits, tpot_s=limits, deadline_s=limits, weight=st.floats(1e-6, 1e6))
sampling = st.builds(
    SamplingParams,
    n=st.integers(1, 16),
    max_tokens=st.none() | st.integers(50, 1000),
    min_tokens=st.integers(0, 50),
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(0, 2**31 - 1),
    min_p=st.floats(0, 1),
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
    stop=st.lists(st.text(min_size=1, max_size=6), max_size=4).map(tuple),
    stop_token_ids=st.lists(counts, max_size=4).map(tuple),
    include_stop_str_in_output=st.booleans(),
    ignore_eos=st.booleans(),
    skip_special_tokens=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.01, 100),
    logit_bias=st.dictionaries(counts, st.floats(-100, 100), max_size=4),
    allowed_token_ids=st.none() | st.lists(counts, min_size=1, max_size=4).map(tuple),
    bad_words=st.lists(st.text(min_size=1, max_size=6).filter(str.strip), max_size=3).map(tuple),
    bad_word_ids=st.lists(st.lists(counts, min_size=1, max_size=4).map(tuple), max_size=3).map(tuple),
)
requests = st.builds(
    Request,
    id=st.text(min_size=1, max_size=12),
    prompt=st.lists(ints, min_size=1, max_size=40),
    sampling=sampling,
    arrival_s=times,
    objective=objectives,
    priority=st.integers(1 - 2**31, 2**31 - 1),
    client=text,
    program=st.none() | text,
    turn=counts,
    category=text,
    cache_salt=salts,
    seed=st.integers(0, 2**63 - 1),
)
logprobs = st.builds(
    TokenLogprobs, ints, times, counts, st.lists(st.tuples(ints, times), max_size=3).map(tuple)
)  # fmt: skip
stats = st.builds(
    RequestStats,
    queue_s=st.none() | seconds,
    ttft_s=st.none() | seconds,
    e2e_s=seconds,
    prompt_tokens=counts,
    cached_tokens=counts,
    output_tokens=counts,
    preemptions=counts,
)
updates = st.builds(
    Update,
    request_id=text,
    index=counts,
    tokens=st.lists(ints, max_size=4),
    logprobs=st.lists(logprobs, max_size=2),
    prompt_logprobs=st.lists(logprobs, max_size=2),
    finish=st.none() | st.sampled_from(FinishReason),
    stop_token=st.none() | ints,
    stats=st.none() | stats,
    error=st.none() | text,
)
specs = st.builds(
    StateSpec,
    name=text,
    kind=st.sampled_from([kind for kind in StateKind if kind is not StateKind.WINDOWED]),
    layers=st.lists(counts, max_size=4).map(tuple),
    block_tokens=counts,
    block_bytes=counts,
) | st.builds(
    StateSpec,
    name=text,
    kind=st.just(StateKind.WINDOWED),
    layers=st.lists(counts, max_size=4).map(tuple),
    block_tokens=counts,
    block_bytes=counts,
    window_tokens=counts,
    sink_tokens=counts,
    chunk_tokens=counts,
)
facts = st.builds(
    ModelFacts,
    name=text,
    n_layers=counts,
    vocab_size=counts,
    max_model_tokens=counts,
    stop_token_ids=st.frozensets(counts, max_size=4),
    states=st.lists(specs, max_size=2).map(tuple),
    weight_bytes=counts,
)
COMMANDS = {
    Add: st.builds(Add, requests, times),
    Abort: st.builds(Abort, text),
    Finish: st.builds(Finish, text, counts, counts),
    Shutdown: st.builds(Shutdown),
}
MESSAGES = {
    Updates: st.builds(Updates, st.lists(updates, max_size=3)),
    Refused: st.builds(Refused, text, text, text, st.none() | text, text, times),
    Hello: st.builds(Hello, facts, counts),
    Phase: st.builds(Phase, text, st.none() | times),
    Beat: st.builds(Beat, st.dictionaries(text, times, max_size=4), times),
    Died: st.builds(Died, text, st.booleans()),
}


def test_every_command_and_message_has_a_strategy():
    assert set(COMMANDS) == set(messages.Command.__args__)
    assert set(MESSAGES) == set(messages.Message.__args__)


@settings(deadline=None, max_examples=60)
@given(command=st.one_of(*COMMANDS.values()))
def test_a_command_comes_out_as_it_went_in(command):
    back = decode_command(encode(command))
    assert back == command
    assert type(back) is type(command)
    if isinstance(back, Add):
        assert isinstance(back.request.prompt, array)


@settings(deadline=None, max_examples=60)
@given(message=st.one_of(*MESSAGES.values()))
def test_a_message_comes_out_as_it_went_in(message):
    back = decode_message(encode(message))
    assert back == message
    assert type(back) is type(message)


DECODERS = [decode_command, decode_message]


def decodes_or_refuses(decode, data):
    """DecodeError is the only way out; a value that did decode goes over the wire again."""
    try:
        got = decode(data)
    except msgspec.DecodeError:
        return
    encode(got)


@pytest.mark.parametrize("decode", DECODERS)
@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_a_decode_error(decode, data):
    decodes_or_refuses(decode, data)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | text | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def nearly_right(draw):
    """A valid message with one value somewhere replaced by another, or with bytes changed, cut off or put behind."""
    data = encode(draw(st.one_of(*COMMANDS.values(), *MESSAGES.values())))
    if draw(st.booleans()):
        tree = msgspec.msgpack.decode(data)
        at, key = None, None
        node = tree
        while isinstance(node, dict | list) and node:
            at = node
            key = draw(st.sampled_from(sorted(node))) if isinstance(node, dict) else draw(st.integers(0, len(node) - 1))
            node = node[key]
            if draw(st.integers(0, 2)) == 0:
                break
        at[key] = draw(plain)
        return msgspec.msgpack.encode(tree)
    where = draw(st.integers(0, len(data) - 1))
    return draw(
        st.sampled_from([data[:where], data + b"\xc0", data[:where] + draw(st.binary(max_size=4)) + data[where + 1 :]])
    )


@pytest.mark.parametrize("decode", DECODERS)
@settings(deadline=None, max_examples=300)
@given(data=nearly_right())
def test_a_message_with_a_wrong_spot_is_a_decode_error(decode, data):
    decodes_or_refuses(decode, data)


def request_bytes(**fields):
    return msgspec.msgpack.encode({"type": "Add", "request": {"id": "r", "prompt": b"\1\0\0\0", **fields}})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93" * 100_000,  # nested beyond any stack
        b"\x81\xa1x" * 100_000,
        request_bytes(prompt=b"\1\0\0"),  # not a whole number of ids
        request_bytes(prompt=b""),
        request_bytes(prompt=[2**40]),
        request_bytes(prompt=[1, "a"]),
        request_bytes(prompt="abcd"),
        request_bytes(prompt=7),
        request_bytes(prompt={1: 2}),
        request_bytes(prompt=None),
        request_bytes(id=""),
        request_bytes(sampling={"n": 0}),
        request_bytes(sampling={"logit_bias": [[1, 101.0]]}),
        request_bytes(sampling={"logit_bias": {"1": 1.0}}),
        request_bytes(sampling={"allowed_token_ids": []}),
        request_bytes(sampling={"bad_word_ids": [[]]}),
        request_bytes(sampling={"repetition_penalty": 0.0}),
        request_bytes(objective={"ttft_s": -1.0}),
        request_bytes(cache_salt="a/b"),
        request_bytes(arrival_s=float("nan")),
        request_bytes(turn="1"),
        encode(Abort("r")) * 2,
    ],
    ids=lambda data: data[:24].hex(),
)
def test_what_no_front_end_of_ours_sends_is_a_decode_error(data):
    with pytest.raises(msgspec.DecodeError):
        decode_command(data)


def test_a_prompt_nested_beyond_any_stack_is_a_decode_error():
    deep = request_bytes(prompt=None)
    at = deep.index(b"\xa6prompt") + 7
    with pytest.raises(msgspec.DecodeError):
        decode_command(deep[:at] + b"\x91" * 50_000 + deep[at:])


def test_a_command_is_no_message_and_a_message_no_command():
    with pytest.raises(msgspec.DecodeError):
        decode_message(encode(Abort("r")))
    with pytest.raises(msgspec.DecodeError):
        decode_command(encode(Died("gone")))


def test_the_reason_of_an_invalid_request_survives_the_wire():
    with pytest.raises(msgspec.DecodeError, match="n is 0: ask for 1 to 16 samples"):
        decode_command(request_bytes(sampling={"n": 0}))


def test_what_has_no_wire_form_is_not_sent():
    with pytest.raises(NotImplementedError, match="object has no wire form"):
        encode(Abort(object()))


def test_requests_are_checked_on_both_sides():
    with pytest.raises(InvalidRequest):
        Request(id="r", prompt=[2**40])


@pytest.mark.parametrize("parts", [{"window_tokens": 4}, {"chunk_tokens": 4}], ids=["no chunks", "no window"])
def test_a_window_without_all_that_belongs_to_it_is_a_decode_error(parts):
    data = {"name": "w", "kind": "windowed", "layers": [0], "block_tokens": 4, "block_bytes": 1, **parts}
    facts = {
        "name": "m", "n_layers": 1, "vocab_size": 9, "max_model_tokens": 9, "stop_token_ids": [], "states": [data],
        "weight_bytes": 1,
    }  # fmt: skip
    with pytest.raises(msgspec.DecodeError, match="windowed state, and no other"):
        decode_message(msgspec.msgpack.encode({"type": "Hello", "facts": facts, "version": 1}))
