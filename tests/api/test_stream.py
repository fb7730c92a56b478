"""The bytes of a stream, as bench clients read them."""

import json

import httpx
import pytest
from fake_engine import REPLY, FakeEngine

from penstock.core.errors import EngineDied, Overloaded
from penstock.core.sequence import FinishReason

CHAT = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}
USAGE = {"include_usage": True}


def events(response: httpx.Response) -> list[dict]:
    """The data of each event. Fails if anything but events with one line each was sent, or the end mark is missing."""
    assert response.text.endswith("\n\n")
    lines = response.text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def n_reply_tokens(engine: FakeEngine) -> int:
    return len(engine.tokenizer.encode(REPLY, add_special_tokens=False))


def test_a_stream_says_what_it_is(server):
    response = server.post("/v1/completions", {"prompt": "x", "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"


def test_a_completion_stream_has_one_event_per_step_and_the_end_on_the_last(server):
    response = server.post("/v1/completions", {"prompt": "x", "stream": True, "max_tokens": 100})
    got = events(response)
    assert len(got) == n_reply_tokens(server.engine)
    assert [event["choices"][0]["finish_reason"] for event in got] == [None] * (len(got) - 1) + ["stop"]
    assert {event["object"] for event in got} == {"text_completion"}
    assert len({event["id"] for event in got}) == 1
    assert any(event["choices"][0]["text"] == "" for event in got)  # a part of a character still counts as a token


def test_usage_comes_last_with_empty_choices(server):
    for path, body in (("/v1/completions", {"prompt": "x", "max_tokens": 100}), ("/v1/chat/completions", CHAT)):
        *_, last = events(server.post(path, {**body, "stream": True, "stream_options": USAGE}))
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == n_reply_tokens(server.engine)
        assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
        assert last["metrics"]["queue_time_ms"] == 10.0
        assert last["metrics"]["time_to_first_token_ms"] == 30.0
        assert last["metrics"]["mean_itl_ms"] == 5.0


def test_running_usage_counts_up(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "x", "stream": True, "max_tokens": 4, "stream_options": options}
    got = events(server.post("/v1/completions", body))
    assert [event["usage"]["completion_tokens"] for event in got] == [1, 2, 3, 4, 4]


def test_a_chat_stream_opens_with_a_role_that_is_no_token(server):
    first, *rest = events(server.post("/v1/chat/completions", {**CHAT, "stream": True}))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(list(event["choices"][0]["delta"]) == ["content"] for event in rest)
    assert len(rest) == n_reply_tokens(server.engine)
    assert {event["object"] for event in (first, *rest)} == {"chat.completion.chunk"}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_samples_and_prompts_keep_their_places(server, path):
    is_chat = "chat" in path
    body = CHAT if is_chat else {"prompt": ["one", "two", "three"]}
    n_choices = 2 if is_chat else 6
    body = {**body, "n": 2, "max_tokens": 100}
    plain = server.post(path, body).json()
    assert [choice["index"] for choice in plain["choices"]] == list(range(n_choices))
    texts = dict.fromkeys(range(n_choices), "")
    ends = []
    for event in events(server.post(path, {**body, "stream": True})):
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["delta"]["content"] if is_chat else choice["text"]
        ends += [choice["index"]] if choice["finish_reason"] else []
    assert set(texts.values()) == {REPLY}
    assert sorted(ends) == list(range(n_choices))


def test_no_part_of_a_stop_string_is_streamed(server):
    body = {"prompt": "x", "stop": ["reply", "is a cat"], "max_tokens": 100}
    got = events(server.post("/v1/completions", {**body, "stream": True}))
    text = "".join(event["choices"][0]["text"] for event in got)
    assert text == REPLY[: REPLY.index("reply")]
    assert got[-1]["choices"][0]["stop_reason"] == "reply"
    plain = server.post("/v1/completions", {**body, "include_stop_str_in_output": True}).json()["choices"][0]
    assert plain["text"] == REPLY[: REPLY.index("reply")] + "reply"


def test_an_error_in_mid_stream_is_the_last_event(server):
    server.engine.failure, server.engine.fail_after = EngineDied("the engine stopped; send it again"), 3
    response = server.post("/v1/completions", {"prompt": "x", "stream": True, "max_tokens": 100})
    assert response.status_code == 200
    *tokens, last = events(response)
    assert len(tokens) == 3
    assert last["error"]["code"] == "engine_died"
    assert "send it again" in last["error"]["message"]


def test_a_foreign_error_says_nothing_of_itself(server, caplog):
    server.engine.failure, server.engine.fail_after = RuntimeError("secret at /etc/passwd 0x7f00"), 2
    stream = server.post("/v1/completions", {"prompt": "x", "stream": True})
    server.engine.fail_after = 0
    plain = server.post("/v1/completions", {"prompt": "x"})
    assert plain.status_code == 500
    for text in (stream.text, plain.text):
        assert "internal_error" in text
        assert "secret" not in text
    assert "RuntimeError" in caplog.text  # but the log has it, under the id that the client was told
    assert f"call {plain.headers['x-request-id']} failed" in caplog.text


@pytest.mark.parametrize("end", [FinishReason.ERROR, FinishReason.ABORT])
def test_a_sample_that_the_engine_gives_up_is_an_error(server, end):
    server.engine.end = end
    body = {"prompt": "x", "max_tokens": 100}
    *_, last = events(server.post("/v1/completions", {**body, "stream": True}))
    plain = server.post("/v1/completions", body)
    assert plain.status_code == (500 if end is FinishReason.ERROR else 503)
    assert last["error"]["code"] == plain.json()["error"]["code"]


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_full_queue_is_503_with_the_time_to_try_again(server, is_stream):
    server.engine.refuse = Overloaded("the queue holds 5 of 5", reason="max_queued_requests", retry_after_s=2.3)
    response = server.post("/v1/completions", {"prompt": "x", "stream": is_stream})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"
    assert response.headers["retry-after-ms"] == "2300"
    assert response.json()["error"]["code"] == "overloaded"


def test_a_batch_gives_the_engine_only_so_many_at_a_time(start):
    from penstock.api.limits import Limits

    server = start(limits=Limits(in_flight=3))
    answer = server.post("/v1/completions", {"prompt": [[k + 5] for k in range(20)], "max_tokens": 2}).json()
    assert len(answer["choices"]) == 20
    assert server.engine.most_at_once == 3


def test_a_batch_fails_as_a_whole_and_leaves_nothing_running(server):
    server.engine.refuse = Overloaded("full", reason="max_queued_requests", retry_after_s=1.0)
    assert server.post("/v1/completions", {"prompt": ["a", "b", "c"]}).status_code == 503
