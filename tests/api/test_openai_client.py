"""What the official client sees."""

import openai
import pytest
from fake_engine import REPLY

MESSAGES = [{"role": "user", "content": "Hi there"}]


def test_a_completion_in_one_piece(client, server):
    answer = client.completions.create(model="tiny", prompt="Once", max_tokens=100)
    assert answer.choices[0].text == REPLY
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "text_completion"
    assert answer.usage.prompt_tokens == len(server.engine.requests[0].prompt)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 2


def test_a_streamed_completion_is_the_same_text(client):
    events = list(
        client.completions.create(
            model="tiny", prompt="Once", max_tokens=100, stream=True, stream_options={"include_usage": True}
        )
    )
    *tokens, usage = events
    assert "".join(event.choices[0].text for event in tokens) == REPLY
    assert [event.choices[0].finish_reason for event in tokens[:-1]] == [None] * (len(tokens) - 1)
    assert tokens[-1].choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage.completion_tokens == len(tokens)


def test_a_chat_in_one_piece(client):
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert answer.choices[0].message.content == REPLY
    assert answer.choices[0].message.role == "assistant"
    assert answer.object == "chat.completion"


def test_a_streamed_chat_has_the_role_first(client):
    first, *events = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(event.choices[0].delta.content for event in events) == REPLY
    assert all(event.choices[0].delta.role is None for event in events)
    assert events[-1].choices[0].finish_reason == "stop"
    assert first.object == "chat.completion.chunk"


def test_the_length_of_an_answer_is_limited_by_either_name(client):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, **{name: 3})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3


def test_content_may_be_a_list_of_parts(client, server):
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi\nthere"}])
    assert server.engine.requests[0].prompt == server.engine.requests[1].prompt


def test_models_are_listed_with_what_bench_clients_read(client, server):
    cards = client.models.list().data
    assert [card.id for card in cards] == ["tiny", "org/alias"]
    assert cards[0].root == "org/tiny-root"
    assert cards[0].max_model_len == server.engine.facts.max_model_tokens
    assert cards[0].owned_by == "penstock"
    assert client.models.retrieve("org/alias").id == "org/alias"
    assert client.completions.create(model=cards[0].root, prompt="x").model == "org/tiny-root"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
