"""A simulated engine behind the real server: real clients, predicted times, no weights."""

from __future__ import annotations

import json
import urllib.request

import pytest

from penstock.core.errors import UnknownName
from penstock.launch import answer_tokens
from penstock.options import EngineOptions
from tests.integration.conftest import ServerProcess

SEED = 2  # of an answer that does not end before its limit


@pytest.fixture(scope="module")
def staging():
    server = ServerProcess("llama-8b", "--executor", "simulated", "--device", "h200")
    server.wait_until("/ready", 200)
    yield server
    assert server.stop() == 0


def ask(server, path="/v1/completions", **body):
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_a_client_gets_as_many_tokens_as_it_asked_for_under_the_name_of_the_shape(staging):
    answer = ask(staging, prompt="Say something", max_tokens=12, seed=SEED)
    assert answer["model"] == "llama-8b"
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["choices"][0]["text"].split() == ["word"] * 12


def test_without_a_limit_an_answer_ends_by_itself_after_a_length_drawn_by_its_seed(staging):
    def length(seed):
        messages = [{"role": "user", "content": "On"}]
        return ask(staging, "/v1/chat/completions", messages=messages, seed=seed)["usage"]["completion_tokens"]

    lengths = [length(seed) for seed in (1, 2, 1)]
    assert lengths[0] == lengths[2] == answer_tokens(1)
    assert lengths[1] == answer_tokens(2) != lengths[0]


def test_an_unknown_executor_is_answered_with_those_there_are():
    with pytest.raises(UnknownName, match="simulated"):
        EngineOptions(executor="pretend")
