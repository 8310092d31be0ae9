"""The edge's server as a real process: heads, bodies, keep-alive, hang-ups, stopping."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from services.edge.http_response import Response
from tests.parts.feature import within
from tests.parts.ports import free_port

ROOT = Path(__file__).parents[2]


class Server:
    def __init__(self, folder: Path, workers: int = 1, grace_s: float = 5.0):
        self.port = free_port()
        self.notes = folder / "notes"
        self.notes.touch()
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "tests.parts.probe_app"),
                *(str(self.port), str(self.notes), str(workers), str(grace_s)),
            ],
            cwd=ROOT,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.wait_for("made in", workers)

    def wait_for(self, word: str, count: int = 1, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while self.notes.read_text().count(word) < count:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, f"no {word!r} in {self.notes.read_text()!r}"
            time.sleep(0.02)

    def output(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
        self.log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("edge"))
    yield running
    running.stop()


@pytest.fixture
def own_server(tmp_path):
    """start(**options) -> a server of the test's own, which it may stop."""
    running = []

    def start(**options):
        running.append(Server(tmp_path, **options))
        return running[-1]

    yield start
    for one in running:
        one.stop()


class Client:
    """A raw HTTP/1.1 client that shows framing instead of hiding it."""

    def __init__(self, server: Server):
        self.sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, data: bytes) -> "Client":
        self.sock.sendall(data)
        return self

    def get(self, path: str, *lines: str) -> "Client":
        return self.send("\r\n".join([f"GET {path} HTTP/1.1", "host: x", *lines, "", ""]).encode())

    def response(self) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) by content-length; of a chunked answer all up to its end."""
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        status = int(first.split()[1])
        if headers.get("transfer-encoding") == "chunked":
            while not self.buffer.endswith(b"0\r\n\r\n"):
                self._more()
            body, self.buffer = self.buffer, b""
            return status, headers, body
        length = int(headers.get("content-length", 0))
        while len(self.buffer) < length:
            self._more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return status, headers, body

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError(self.buffer)
        self.buffer += data

    def ended(self) -> bool:
        """The server closed and sent nothing else."""
        return self.buffer == b"" and self.sock.recv(1) == b""


def environ_of(server: Server, *lines: str, path: str = "/environ") -> dict[str, str]:
    with Client(server) as client:
        status, _, body = client.get(path, *lines).response()
        assert status == 200
        return json.loads(body)


# Heads.


def test_the_environ(server):
    environ = environ_of(
        server, "X-Api-Key: sk-1", "Accept: a", "accept: b", path="/environ?a=1&b=%20"
    )
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["PATH_INFO"] == "/environ"
    assert environ["QUERY_STRING"] == "a=1&b=%20"
    assert environ["HTTP_X_API_KEY"] == "sk-1"
    assert environ["HTTP_ACCEPT"] == "a,b"
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["SERVER_PORT"] == str(server.port)
    assert environ["wsgi.url_scheme"] == "http"


def test_a_path_is_unquoted(server):
    assert environ_of(server, path="/%65nviron")["PATH_INFO"] == "/environ"


def test_session_headers_of_older_codex_arrive(server):
    environ = environ_of(server, "session_id: s-1", "conversation_id: c-1")
    assert environ["HTTP_SESSION_ID"] == "s-1"
    assert environ["HTTP_CONVERSATION_ID"] == "c-1"


@pytest.mark.parametrize("order", [1, -1])
def test_an_underscore_name_neither_replaces_nor_joins_the_hyphenated_one(server, order):
    lines = ["session-id: real", "session_id: forged"][::order]
    assert environ_of(server, *lines)["HTTP_SESSION_ID"] == "real"


@pytest.mark.parametrize(
    "name", ["x_api_key", "content_length", "x_forwarded_for", "script_name", "path_info", "host_"]
)
def test_other_underscore_names_are_dropped(server, name):
    environ = environ_of(server, f"{name}: forged")
    assert "forged" not in environ.values()


@pytest.mark.parametrize("name", ["x-forwarded-proto: https", "x-forwarded-ssl: on"])
def test_a_forwarded_scheme_is_not_believed(server, name):
    assert environ_of(server, name)["wsgi.url_scheme"] == "http"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nbad header: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na", 400),
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
            b"0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x: 1\r\n" * 210 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + (b"x: " + b"a" * 3000 + b"\r\n") * 60 + b"\r\n", 431),
    ],
)
def test_a_malformed_head_is_refused_as_json_and_ends_the_connection(server, request_bytes, status):
    with Client(server) as client:
        got, headers, body = client.send(request_bytes).response()
        assert got == status
        assert headers["connection"] == "close"
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert client.ended()


def test_headers_of_coding_agents_fit(server):
    environ = environ_of(server, "x-codex-turn-metadata: " + "m" * 20_000)
    assert len(environ["HTTP_X_CODEX_TURN_METADATA"]) == 20_000


# Bodies.


def test_a_body_arrives_whole(server):
    body = b"x" * 5_000_000
    with Client(server) as client:
        client.send(b"POST /size HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
        client.send(body)
        assert client.response()[2] == b"5000000"


def test_a_chunked_body_arrives_whole(server):
    with Client(server) as client:
        client.send(b"POST /size HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        client.send(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
        assert client.response()[2] == b"11"


def test_a_small_body_nobody_read_does_not_become_the_next_request(server):
    with Client(server) as client:
        inner = b"GET /environ HTTP/1.1\r\nhost: x\r\n\r\n"
        client.send(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(inner))
        client.send(inner)
        assert client.response()[0] == 401
        assert client.get("/nothing").response()[0] == 404


def test_the_answer_survives_a_large_body_nobody_read(server):
    body = b"x" * 30_000_000
    with Client(server) as client:
        client.send(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
        client.send(body)
        assert client.response()[0] == 401
        assert client.ended()


def test_continue_is_sent_when_the_body_is_wanted(server):
    with Client(server) as client:
        client.send(
            b"POST /size HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
        )
        assert client.response()[0] == 100
        assert client.send(b"hello").response()[2] == b"5"


def test_no_continue_for_a_body_nobody_wants(server):
    with Client(server) as client:
        client.send(
            b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
        )
        assert client.response()[0] == 401
        assert client.ended()


# Answers.


def test_a_stream_is_chunked_block_by_block(server):
    with Client(server) as client:
        _, headers, body = client.get("/ticks").response()
        assert headers["transfer-encoding"] == "chunked"
        assert body == (b"7\r\ntick 2\n\r\n7\r\ntick 1\n\r\n7\r\ntick 0\n\r\n0\r\n\r\n")
        assert client.get("/nothing").response()[0] == 404


def test_an_old_client_gets_a_stream_ended_by_the_close(server):
    with Client(server) as client:
        client.send(b"GET /ticks HTTP/1.0\r\n\r\n")
        got = b""
        while data := client.sock.recv(1000):
            got += data
        head, _, body = got.partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert body == b"tick 2\ntick 1\ntick 0\n"


def test_pipelined_requests_are_answered_in_order(server):
    with Client(server) as client:
        client.get("/environ?n=1").get("/nothing").get("/environ?n=2")
        assert json.loads(client.response()[2])["QUERY_STRING"] == "n=1"
        assert client.response()[0] == 404
        assert json.loads(client.response()[2])["QUERY_STRING"] == "n=2"


def test_a_failed_application_is_a_500(server):
    with Client(server) as client:
        status, _, body = client.get("/fail").response()
        assert status == 500
        assert json.loads(body)["error"]["code"] == "internal_error"
        assert b"failed" not in body


def test_a_stream_that_fails_is_cut_without_its_last_chunk(server):
    with Client(server) as client:
        with pytest.raises(EOFError) as cut:
            client.get("/fail-late").response()
        assert b"0\r\n\r\n" not in cut.value.args[0]
    server.wait_for("stream closed with 0 left")


def test_an_answer_shorter_than_its_length_ends_the_connection(server):
    with Client(server) as client, pytest.raises(EOFError):
        client.get("/short").response()


def test_a_header_cannot_be_split(server):
    with Client(server) as client:
        status, headers, _ = client.get("/split").response()
        assert status == 500
        assert "x-evil" not in headers


def test_no_content_and_head_have_no_body(server):
    with Client(server) as client:
        status, headers, _ = client.get("/no-content").response()
        assert status == 204
        assert "content-length" not in headers
        assert "transfer-encoding" not in headers
        client.send(b"HEAD /environ HTTP/1.1\r\nhost: x\r\n\r\n")
        while b"\r\n\r\n" not in client.buffer:
            client._more()
        assert client.buffer.endswith(b"\r\n\r\n")
        client.buffer = b""
        assert client.get("/nothing").response()[0] == 404


class Wire:
    def __init__(self):
        self.sends = []

    def settimeout(self, seconds):
        pass

    def send(self, data):
        self.sends.append(data)
        return len(data)


class Head:
    method, version = "POST", (1, 1)

    def should_close(self):
        return False


def test_head_and_first_block_leave_in_one_send():
    wire = Wire()
    response = Response(Head(), wire, False)
    response.start_response("200 OK", [("Content-Type", "text/event-stream")])
    assert wire.sends == []
    response.write(b"")
    response.write(b"one")
    response.write(b"two")
    response.close()
    assert len(wire.sends) == 3
    assert wire.sends[0].endswith(b"\r\n\r\n3\r\none\r\n")
    assert wire.sends[1:] == [b"3\r\ntwo\r\n", b"0\r\n\r\n"]


def test_an_answer_without_a_body_is_sent_at_its_end():
    wire = Wire()
    response = Response(Head(), wire, False)
    response.start_response("200 OK", [("content-length", "0")])
    response.close()
    assert len(wire.sends) == 1
    assert not response.close_after


# Hang-ups.


def test_an_idle_client_and_a_dribbled_head_are_dropped(own_server, monkeypatch):
    monkeypatch.setenv("PROBE_KEEPALIVE_S", "1")
    server = own_server()
    with Client(server) as idle, Client(server) as slow, Client(server) as busy:
        assert idle.get("/nothing").response()[0] == 404
        slow.send(b"GET / HTTP/1.1\r\nhost:")
        assert busy.get("/slow?30").response()[0] == 200
        assert idle.ended()
        assert slow.ended()


def test_a_client_that_hangs_up_is_noticed_while_its_request_waits(own_server):
    server = own_server()
    with Client(server) as client:
        client.get("/watched")
        server.wait_for("watching")
    server.wait_for("client gone")


def test_a_pipelining_client_is_not_gone(own_server):
    server = own_server()
    with Client(server) as client:
        client.get("/watched").get("/nothing")
        server.wait_for("client stayed")
        assert client.response()[0] == 200
        assert client.response()[0] == 404


def test_the_stream_of_a_client_that_hung_up_is_closed(own_server):
    server = own_server()
    with Client(server) as client:
        client.get("/slow")
        client._more()
    server.wait_for("stream closed with")


# The process.


def test_its_processes_and_ports(own_server):
    server = own_server(workers=2)
    assert " ".join(psutil.Process(server.process.pid).cmdline()).startswith("tollgate: edge")
    workers = server.workers()
    assert len(workers) == 2
    assert all("tollgate: edge worker" in " ".join(w.cmdline()) for w in workers)
    family = [psutil.Process(server.process.pid), *workers]
    listening = {
        (c.laddr.ip, c.laddr.port)
        for process in family
        for c in process.net_connections()
        if c.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", server.port)}
    assert all(not process.net_connections("unix") for process in family)


def test_a_killed_worker_is_replaced(own_server):
    server = own_server()
    os.kill(server.workers()[0].pid, signal.SIGKILL)
    server.wait_for("made in", 2)
    assert environ_of(server)["REQUEST_METHOD"] == "GET"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopping_drains_streams_and_drops_idle_clients(own_server, signum):
    server = own_server()
    with Client(server) as idle, Client(server) as streaming:
        assert idle.get("/nothing").response()[0] == 404
        streaming.get("/slow?20")
        streaming._more()
        started = time.monotonic()
        for process in [*server.workers(), psutil.Process(server.process.pid)]:
            process.send_signal(signum)  # as Ctrl-C does: to the whole group
        assert idle.ended()
        assert time.monotonic() - started < 1.8  # while the stream goes on for two seconds
        assert streaming.response()[2].endswith(b"tick 0\n\r\n0\r\n\r\n")
        assert server.process.wait(10) == 0
    notes = server.notes.read_text().split("\n")
    assert "cut" not in notes
    assert notes[-2:] == ["closed", ""]


def test_connections_made_before_the_stop_are_served(own_server):
    """Also those that nobody has accepted yet, and one that asks a moment later."""
    server = own_server()
    (worker,) = server.workers()
    silent = Client(server)
    time.sleep(0.2)  # it is accepted
    worker.send_signal(signal.SIGSTOP)
    waiting = [Client(server).get("/environ") for _ in range(150)]  # more than one turn takes
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 10
    while psutil.Process(server.process.pid).net_connections("tcp"):
        assert time.monotonic() < deadline, "the master listens on"
        time.sleep(0.02)
    worker.send_signal(signal.SIGCONT)
    for client in waiting:
        status, headers, _ = client.response()
        assert (status, headers["connection"]) == (200, "close")
        client.sock.close()
    while any(c.status == psutil.CONN_LISTEN for c in worker.net_connections("tcp")):
        assert time.monotonic() < deadline, "the worker listens on"
        time.sleep(0.02)
    assert silent.get("/environ").response()[0] == 200
    silent.sock.close()
    assert server.process.wait(10) == 0


def test_a_silent_connection_does_not_hold_up_the_stop(own_server):
    server = own_server(grace_s=30.0)
    with Client(server) as silent:
        time.sleep(0.2)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert silent.ended()
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 15


def test_a_stream_longer_than_the_grace_period_is_cut(own_server):
    server = own_server(grace_s=1.0)
    with Client(server) as streaming:
        streaming.get("/slow?1000")
        streaming._more()
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(EOFError):
            streaming.response()
        assert server.process.wait(15) == 0
        assert 1 < time.monotonic() - started < 8
    notes = server.notes.read_text()
    assert notes.index("cut\n") < notes.index("stream closed with") < notes.index("closed\n")


def asked_s(server: Server) -> float:
    began = time.monotonic()
    with Client(server) as one_more:
        assert one_more.get("/nothing").response()[0] == 404
    return time.monotonic() - began


def test_a_thousand_open_connections(own_server):
    server = own_server()
    clients = [Client(server).get("/slow?30") for _ in range(1000)]
    try:
        within(2.0, lambda: asked_s(server))
        assert all(client.response()[2].endswith(b"0\r\n\r\n") for client in clients)
    finally:
        for client in clients:
            client.sock.close()
