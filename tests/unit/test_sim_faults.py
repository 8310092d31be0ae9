"""Each fault on the wire, and what the log says of it."""

import asyncio
import gzip
import http.client
import json
import socket
import time

import pytest

from tests.parts.sim import Sim, sim

__all__ = ["sim"]
PATHS = {"anthropic": "/v1/messages", "chat": "/v1/chat/completions", "responses": "/v1/responses"}


def body(dialect, model="m", stream=True, text="sim:words 40"):
    asked = {"model": model, "stream": stream}
    if dialect == "responses":
        return json.dumps({**asked, "input": text}).encode()
    limit = {"max_tokens": 500} if dialect == "anthropic" else {}
    return json.dumps({**asked, **limit, "messages": [{"role": "user", "content": text}]}).encode()


def post(sim, dialect, model, stream=True, timeout=5, **headers):
    """(status, headers, body, whether it ended properly)"""
    connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=timeout)
    try:
        connection.request("POST", PATHS[dialect], body(dialect, model, stream), headers)
        reply = connection.getresponse()
        try:
            return reply.status, reply.headers, reply.read(), True
        except http.client.IncompleteRead as cut:
            return reply.status, reply.headers, cut.partial, False
    finally:
        connection.close()


@pytest.fixture(params=list(PATHS))
def dialect(request):
    return request.param


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 502, 503])
def test_errors_have_the_status_and_the_dialects_shape(sim, dialect, status):
    got, _, raw, _ = post(sim, dialect, f"sim-error-{status}")
    error = json.loads(raw)
    assert got == status
    assert (error.get("type") == "error") is (dialect == "anthropic")
    assert error["error"]["message"]


def test_429_and_529(sim, dialect):
    status, headers, _, _ = post(sim, dialect, "sim-429-3")
    assert (status, headers["retry-after"]) == (429, "3")
    assert post(sim, dialect, "sim-529")[0] == 529


def test_an_error_in_a_200(sim, dialect):
    status, _, raw, _ = post(sim, dialect, "sim-200-error-body")
    assert status == 200
    assert "error" in json.loads(raw)


def test_a_cut_stream_has_no_end(sim, dialect):
    _, _, raw, whole = post(sim, dialect, "sim-cut-mid-stream")
    assert not whole
    assert raw.count(b"delta") >= 3
    assert sim.wait_for_calls(1, model="sim-cut-mid-stream")


def test_an_error_in_the_middle_of_a_stream(sim, dialect):
    _, _, raw, whole = post(sim, dialect, "sim-error-mid-stream")
    assert whole
    last = raw.strip().split(b"\n\n")[-1]
    assert b"Overloaded" in last
    assert b"[DONE]" not in raw
    assert b"message_stop" not in raw


def test_the_finish_reason_without_an_end_marker(sim, dialect):
    _, _, raw, whole = post(sim, dialect, "sim-cut-after-finish")
    finish = {"anthropic": b"end_turn", "chat": b'"stop"', "responses": b"output_item.done"}
    end = {"anthropic": b"message_stop", "chat": b"[DONE]", "responses": b"response.completed"}
    assert whole
    assert finish[dialect] in raw
    assert end[dialect] not in raw


def test_no_usage_and_no_content(sim, dialect):
    assert b'_tokens":' not in post(sim, dialect, "sim-no-usage", stream=False)[2].replace(
        b'"max_output_tokens":', b""
    )
    assert b"paid" not in post(sim, dialect, "sim-empty")[2]


def test_bodies_that_are_not_json(sim, dialect):
    for fault in ("sim-truncated-json", "sim-bad-json"):
        status, _, raw, whole = post(sim, dialect, fault, stream=False)
        assert (status, whole) == (200, True)
        with pytest.raises(ValueError, match=r"."):
            json.loads(raw)


def test_pings_come_between_events(sim, dialect):
    raw = post(sim, dialect, "sim-ping-1")[2]
    ping = {"anthropic": b"event: ping", "chat": b": PROCESSING", "responses": b": ping"}
    assert raw.count(ping[dialect]) > 3


def test_the_charge_is_three_times_what_was_asked(sim):
    raw = post(sim, "anthropic", "sim-huge-usage", stream=False)[2]
    assert json.loads(raw)["usage"]["output_tokens"] == 1500


def test_no_first_byte(sim, dialect):
    with pytest.raises(TimeoutError):
        post(sim, dialect, "sim-stall-first", timeout=0.3)
    call = sim.wait_for_calls(1, model="sim-stall-first", dialect=dialect)[0]
    assert call["client_gone"]
    assert call["bytes_sent"] == 0


def test_a_closed_connection_and_half_a_head(sim):
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        post(sim, "chat", "sim-close-connect")
    with pytest.raises(TimeoutError):
        post(sim, "chat", "sim-hang-head", timeout=0.3)


def test_a_flaky_session_works_after_its_failures(sim):
    sim.reset()
    statuses = [post(sim, "anthropic", "sim-flaky-2")[0] for _ in range(4)]
    assert statuses == [529, 529, 200, 200]


def test_a_redirect_and_a_compressed_answer(sim):
    status, headers, _, _ = post(sim, "chat", "sim-redirect")
    assert (status, headers["location"]) == (307, "/sim/stolen")
    _, headers, raw, _ = post(sim, "chat", "sim-gzip", stream=False)
    assert headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(raw))["object"] == "chat.completion"


def test_a_stall_is_left_by_the_client_and_noticed(sim, dialect):
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        post(sim, dialect, "sim-stall-60", timeout=1.0)
    call = sim.wait_for_calls(1, model="sim-stall-60", dialect=dialect)[0]
    assert call["client_gone"]
    assert call["events_sent"] >= 3
    assert time.monotonic() - began < 20


def test_the_log_hides_credentials_and_the_echo_keeps_bytes(sim):
    asked = body("chat", stream=False)
    connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=5)
    connection.request(
        "POST", "/v1/chat/completions?key=topsecret", asked, {"Authorization": "Bearer abcdefgh"}
    )
    reply = connection.getresponse().read()
    call = sim.wait_for_calls(1)[-1]
    assert ["authorization", "...efgh"] in call["headers"]
    assert "topsecret" not in json.dumps(call)
    assert "abcdefgh" not in sim.log_path.read_text()
    echo = sim.echo()
    assert echo["body"] == asked
    assert echo["reply_body"] == reply
    assert b"abcdefgh" in echo["head"]


def test_a_chunked_body_and_pipelined_requests_are_read(sim):
    asked = body("chat", stream=False)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunked = head + b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (
        9,
        asked[:9],
        len(asked) - 9,
        asked[9:],
    )
    with socket.create_connection(("127.0.0.1", sim.port)) as sock:
        sock.sendall(chunked + chunked + b"GET /sim/nothing HTTP/1.1\r\nconnection: close\r\n\r\n")
        got = b""
        while data := sock.recv(65536):
            got += data
    assert got.count(b"chat.completion") == 2


@pytest.mark.slow
def test_a_thousand_slow_streams(tmp_path):
    """All run at the same time and none falls behind by more than a second."""
    slow = Sim(tmp_path / "log", "--tokens-per-s", "20", "--ttft-ms", "50")
    asked = body("anthropic", text="sim:words 10")
    request = b"POST /v1/messages HTTP/1.1\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"

    async def one() -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", slow.port)
        writer.write(request % (len(asked), asked))
        began = time.monotonic()
        assert b"message_stop" in await reader.read(-1) or b"message_stop" in await reader.read(-1)
        writer.close()
        return time.monotonic() - began

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*(one() for _ in range(1000)))

    try:
        took = asyncio.run(all_of_them())
        assert len(slow.calls()) == 1000
    finally:
        slow.stop()
    assert min(took) > 0.5
    assert max(took) < min(took) + 5
