"""A simulated engine behind the real server: real clients, predicted times, no weights."""

from __future__ import annotations

import json
import urllib.request

import pytest

from penstock.core.errors import UnknownName
from penstock.options import EngineOptions
from tests.integration.conftest import ServerProcess


@pytest.fixture(scope="module")
def staging():
    server = ServerProcess("llama-8b", "--executor", "simulated", "--device", "h200")
    server.wait_until("/ready", 200)
    yield server
    assert server.stop() == 0


def ask(server, **body):
    request = urllib.request.Request(
        server.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_a_client_gets_as_many_tokens_as_it_asked_for_under_the_name_of_the_shape(staging):
    answer = ask(staging, prompt="Say something", max_tokens=12)
    assert answer["model"] == "llama-8b"
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["choices"][0]["text"].split() == ["word"] * 12


def test_without_a_limit_an_answer_ends_by_itself_after_a_length_drawn_by_its_seed(staging):
    lengths = {seed: ask(staging, prompt="On", seed=seed)["usage"]["completion_tokens"] for seed in (1, 2, 1)}
    assert len(set(lengths.values())) == 2
    assert lengths[1] == ask(staging, prompt="On", seed=1)["usage"]["completion_tokens"]


def test_an_unknown_executor_is_answered_with_those_there_are():
    with pytest.raises(UnknownName, match="simulated"):
        EngineOptions(executor="pretend")
