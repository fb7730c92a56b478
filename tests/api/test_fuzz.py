"""Whatever the body: an answer below 500, in the one form. Straight through ASGI, so that thousands are quick."""

import asyncio
import json
import string
from collections.abc import Iterator

import pytest
from fake_engine import FakeEngine
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from penstock.api.app import ApiConfig, App, create_app
from penstock.api.schema import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

ROUTES = {
    "/v1/completions": (CompletionBody, {"prompt": "x"}),
    "/v1/chat/completions": (ChatBody, {"messages": [{"role": "user", "content": "x"}]}),
    "/tokenize": (TokenizeBody, {"prompt": "x"}),
    "/detokenize": (DetokenizeBody, {"tokens": [5]}),
}
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 30),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 4095, 4096]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["\0", "\ud800", "x" * 300, "user", "text", "none", "auto"]),
)
names = st.sampled_from(["role", "content", "type", "text", "include_usage", "ttft_s", "weight", "$ref", ""])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def app(tokenizer) -> Iterator[App]:
    app = create_app(FakeEngine(tokenizer, reply="ok."), tokenizer, ApiConfig(model_names=("tiny",)))
    yield app
    app.close()


def ask(app: App, path: str, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> tuple[int, bytes]:
    """One exchange without a socket; the client stays until the answer is complete."""
    sent: list[dict] = []

    async def run() -> None:
        is_sent = False

        async def receive() -> dict:
            nonlocal is_sent
            if is_sent:
                await asyncio.Event().wait()
            is_sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": headers or []}
        await app(scope, receive, send)

    asyncio.run(run())
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def check(app: App, path: str, data: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    status, answer = ask(app, path, data, headers)
    assert status == 200 or 400 <= status < 500, answer
    if status != 200:
        assert len(answer) <= 4096
        assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(path=st.sampled_from(sorted(ROUTES)), data=st.data())
def test_any_values_in_known_fields_are_answered(app, path, data):
    kind, base = ROUTES[path]
    fields = data.draw(st.dictionaries(st.sampled_from(kind.__struct_fields__), values, max_size=3))
    check(app, path, json.dumps({**base, **fields}).encode())


@quick
@given(path=st.sampled_from(sorted(ROUTES)), body=st.binary(max_size=60))
@example(path="/v1/completions", body=b'{"prompt":')
def test_any_bytes_are_answered(app, path, body):
    check(app, path, body)


@quick
@given(
    value=st.text(string.printable, max_size=40),
    name=st.sampled_from(
        [
            "x-request-id",
            "x-session-affinity",
            "x-penstock-ttft-ms",
            "authorization",
            "content-length",
            "content-encoding",
        ]
    ),
)
def test_any_header_is_answered(app, name, value):
    check(app, "/v1/completions", b'{"prompt": "x"}', [(name.encode(), value.encode("latin-1"))])
