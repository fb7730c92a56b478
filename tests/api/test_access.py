"""Keys: everything is closed unless it is listed as open; the list of routes is the application's own."""

import http.client

import pytest

from penstock.api.app import MODEL_PREFIX, ApiConfig, create_app
from penstock.api.auth import Gate
from penstock.core.errors import ConfigError

KEY, OTHER = "sk-a-long-enough-key", "sk-another-long-key"
OPEN = {"/health", "/live", "/ready"}
BODIES = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [5]},
}


@pytest.fixture
def closed(start):
    return start(api_keys=(KEY, OTHER))


def each_route(app):
    for path, methods in app.routes.items():
        for method in methods:
            yield method, f"{path}tiny" if path == MODEL_PREFIX else path


def ask(server, method: str, path: str, key: str | None = None):
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    return server.http.request(method, path, json=BODIES.get(path), headers=headers)


def test_only_the_listed_routes_answer_without_a_key(closed):
    for method, path in each_route(closed.app):
        response = ask(closed, method, path)
        assert response.status_code == (200 if path in OPEN else 401), path
        if path not in OPEN:
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
    assert closed.engine.requests == []


def test_every_route_answers_to_each_of_the_keys_and_to_no_other(closed):
    for method, path in each_route(closed.app):
        assert ask(closed, method, path, KEY).status_code == 200, path
        assert ask(closed, method, path, OTHER).status_code == 200, path
        for wrong in (KEY[:-1], KEY + "x", KEY.upper(), "é"):
            status = 200 if path in OPEN else 401
            assert ask(closed, method, path, wrong).status_code == status, (path, wrong)


@pytest.mark.parametrize(
    "path", ["/nothing", "//v1/models", "/%76%31/models", "/V1/models", "/health/", "/v1/models/", "/"]
)
def test_a_path_that_is_no_route_needs_a_key_too(closed, path):
    assert closed.http.get(path).status_code == 401


def test_the_host_header_opens_nothing(closed):
    for host in ("localhost/health", "x/health?", "/health"):
        assert closed.http.get("/v1/models", headers={"host": host}).status_code in (400, 401)


def test_a_key_may_come_in_the_other_header(closed):
    assert closed.http.get("/v1/models", headers={"x-api-key": KEY}).status_code == 200


@pytest.mark.parametrize("value", ["Bearer ", "Bearer", "", "Basic x", "Bearer \x00é"])
def test_any_authorization_is_fine_while_there_are_no_keys(server, value):
    """lm-eval sends an empty key when it has none."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.putrequest("GET", "/v1/models")
    connection.putheader("Authorization", value.replace("\x00", ""))
    connection.endheaders()
    assert connection.getresponse().status == 200
    connection.close()


def test_with_keys_prefixes_are_shared_within_a_key_only(closed):
    for key in (KEY, KEY, OTHER):
        ask(closed, "POST", "/v1/completions", key)
    first, second, third = (request.cache_salt for request in closed.engine.requests)
    assert first == second != third
    assert first
    assert KEY not in first
    assert {request.client for request in closed.engine.requests} == {first, third}


def test_a_key_may_have_any_characters(start):
    server = start(api_keys=("schlüssel-ß",))
    assert ask(server, "GET", "/v1/models", "schlüssel-ß").status_code == 200
    assert ask(server, "GET", "/v1/models", "schlussel-s").status_code == 401


def test_a_short_key_is_refused_at_the_start():
    with pytest.raises(ConfigError, match="fewer than"):
        Gate(["short"])


def test_a_configuration_without_a_name_is_refused():
    with pytest.raises(ConfigError, match="no name"):
        ApiConfig(model_names=())


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1", "http://127.0.0.1:1", "null", ""])
def test_a_web_page_of_another_origin_gets_nothing(server, origin):
    for method, path in each_route(server.app):
        response = server.http.request(method, path, json=BODIES.get(path), headers={"origin": origin})
        assert response.status_code == 403, path
        assert not any(name.startswith("access-control") for name in response.headers)
    assert server.engine.requests == []


def test_a_page_of_our_own_is_served(server):
    assert server.http.get("/v1/models", headers={"origin": server.url}).status_code == 200


def test_a_websocket_is_closed(tokenizer):
    import asyncio

    from fake_engine import FakeEngine

    sent = []

    async def run() -> None:
        app = create_app(FakeEngine(tokenizer), tokenizer, ApiConfig(model_names=("tiny",)))

        async def send(message) -> None:
            sent.append(message)

        await app({"type": "websocket", "path": "/"}, None, send)

    asyncio.run(run())
    assert sent == [{"type": "websocket.close", "code": 1008}]
