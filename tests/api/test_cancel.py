"""A client that leaves takes its request along."""

import json
import socket

import pytest

WAIT_S = 10


def send(server, path: str, body: object) -> socket.socket:
    data = json.dumps(body).encode()
    connection = socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=WAIT_S)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_disconnect_aborts_the_request(server, path, is_stream, steps):
    server.engine.hold_after = steps
    prompt = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
    before = server.app.metrics.gone
    with send(server, path, {**prompt, "stream": is_stream}) as connection:
        assert server.engine.held.wait(WAIT_S)
        if is_stream and steps:
            assert b"200" in connection.recv(16)
    assert server.engine.abort_seen.wait(WAIT_S)
    assert server.engine.aborted == [server.engine.requests[0].id]
    server.engine.hold_after = None
    assert server.post("/v1/completions", {"prompt": "x"}).status_code == 200
    assert server.app.metrics.gone == before + 1


def test_a_disconnect_aborts_every_request_of_a_batch(server):
    server.engine.hold_after = 2
    with send(server, "/v1/completions", {"prompt": ["a", "b", "c"]}):
        assert server.engine.held.wait(WAIT_S)
    assert server.engine.abort_seen.wait(WAIT_S)
    server.engine.hold_after = None
    assert server.post("/v1/completions", {"prompt": "x"}).status_code == 200  # the loop has turned since
    assert len(server.engine.aborted) == 3


def test_one_request_that_fails_ends_the_others_of_its_batch(server):
    server.engine.failure, server.engine.fail_after = RuntimeError("broken"), 2
    assert server.post("/v1/completions", {"prompt": ["a", "b", "c"]}).status_code == 500
    assert server.engine._running == 0


def test_the_official_client_may_close_a_stream(client, server):
    server.engine.hold_after = 4
    stream = client.completions.create(model="tiny", prompt="x", stream=True)
    next(iter(stream))
    stream.close()
    assert server.engine.abort_seen.wait(WAIT_S)


def test_a_client_that_leaves_before_its_body_is_complete_costs_nothing(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
        connection.sendall(head)
    assert server.post("/v1/completions", {"prompt": "x"}).status_code == 200
    assert len(server.engine.requests) == 1
