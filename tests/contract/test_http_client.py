"""The client of media upstreams against real servers: what was surely not sent is told from what
may have been."""

import socket
import time

import pytest

from services.backends.http.client import HttpClient, NoReply, NotConnected
from tests.parts.odd_server import OK, authority, says, server


@pytest.fixture
def client():
    return HttpClient()


def create(client, url, **options):
    return client.call("POST", url, json={"prompt": "x"}, **{"timeout_s": 20, **options})


def test_a_reply(client):
    with server(says("content-type: a/b", "retry-after: 7", "content-length: 2", body=b"{}")) as up:
        reply = create(client, up.url + "/jobs", headers={"authorization": "Bearer s"})
        assert (reply.status, reply.ok, reply.json(), reply.retry_after_s) == (200, True, {}, 7.0)
        head = up.heads[0]
        assert head.startswith(b"POST /jobs HTTP/1.1\r\n")
        assert b"Bearer s" in head
        assert b"application/json" in head


def test_a_form_with_files(client):
    with server(says("content-length: 0")) as up:
        files = {"image": ("a.png", b"\x89PNG", "image/png")}
        client.call("POST", up.url, form={"prompt": "é"}, files=files)
        head = up.heads[0].lower()
        assert b"multipart/form-data; boundary=" in head


def test_other_statuses_are_replies(client):
    with server(says("HTTP/1.1 503 No", "content-length: 4", body=b"full")) as up:
        reply = create(client, up.url)
        assert (reply.status, reply.ok, reply.body, reply.json()) == (503, False, b"full", None)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_redirect_is_a_reply_and_not_followed(client, method):
    with server(says("HTTP/1.1 302 F", "location: /b", "content-length: 2", body=b"no")) as up:
        reply = client.call(method, up.url + "/a")
        assert (reply.status, reply.body, len(up.heads)) == (302, b"no", 1)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_endless_body_of_a_redirect_is_bounded(client, method, monkeypatch):
    monkeypatch.setattr("services.backends.http.client._REPLY_MAX", 1_000_000)

    def flood(connection, _):
        connection.sendall(b"HTTP/1.1 302 F\r\nlocation: /b\r\n\r\n")
        while True:
            connection.sendall(bytes(65_536))

    with server(flood) as up, pytest.raises(NoReply, match="larger than 1000000"):
        client.call(method, up.url, timeout_s=20)


def test_what_was_not_sent(client):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    for url in (
        f"http://127.0.0.1:{port}/",
        "http://no-such-host.invalid/",
        "ftp://127.0.0.1/",
        "http://",
        "nonsense",
        "http://" + "a" * 70 + ".example/",
    ):
        with pytest.raises(NotConnected):
            create(client, url)


@pytest.mark.parametrize(
    "raw",
    [b"", b"HTTP/1.1 20", OK + b"content-length: 10\r\n\r\nhalf", b"hello\r\n\r\n"],
    ids=["nothing", "half a head", "half a body", "no HTTP"],
)
def test_what_may_have_been_sent(client, raw):
    with server(lambda connection, _: connection.sendall(raw)) as up:
        with pytest.raises(NoReply):
            create(client, up.url)
        assert len(up.heads) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_silence_and_drips_end_in_time(client, method, monkeypatch):
    monkeypatch.setattr("services.backends.http.client._WHOLE_S", 0.4)

    def drip(connection, _):
        connection.sendall(OK + b"content-length: 100000\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    def drip_head(connection, _):
        connection.sendall(OK)
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    def drip_without_length(connection, _):
        connection.sendall(OK + b"\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    for answer in (lambda connection, _: connection.recv(1), drip, drip_head, drip_without_length):
        with server(answer) as up:
            began = time.monotonic()
            with pytest.raises(NoReply):
                client.call(method, up.url, timeout_s=0.4)
            assert time.monotonic() - began < 10


def test_a_connection_that_is_kept_serves_again_and_ends_in_time(tmp_path, monkeypatch):
    """In clear and over TLS: the third answer on it drips, the fourth question needs another."""
    context, certificate = authority(tmp_path, "127.0.0.1")

    def talk(connection, _):
        for _ in range(2):
            connection.sendall(OK + b"content-length: 2\r\n\r\nok")
            if not connection.recv(65_536):
                return
        connection.sendall(OK + b"content-length: 100000\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    for scheme, tls in (("http", None), ("https", context)):
        client = HttpClient(ca_file=certificate)
        with server(talk, context=tls) as up:
            url = f"{scheme}://127.0.0.1:{up.port}/"
            for _ in range(2):
                assert client.call("GET", url, timeout_s=5).body == b"ok"
            with monkeypatch.context() as patch:
                patch.setattr("services.backends.http.client._WHOLE_S", 0.4)
                began = time.monotonic()
                with pytest.raises(NoReply):
                    client.call("GET", url, timeout_s=0.7)
                assert time.monotonic() - began < 10
            assert len(up.heads) == 1, "one connection so far"
            assert client.call("GET", url, timeout_s=5).body == b"ok"
            assert len(up.heads) == 2


def test_tls_that_fails_before_the_request_was_not_sent(tmp_path, client):
    context, certificate = authority(tmp_path, "127.0.0.1")
    with server(says("content-length: 0"), context=context) as up:
        url = f"https://127.0.0.1:{up.port}/"
        with pytest.raises(NotConnected, match=r"(?i)certificate"):
            create(client, url)
        assert up.heads == []
        assert create(HttpClient(ca_file=certificate), url).ok
        assert HttpClient(ca_file=certificate).call("GET", url).ok
    with server(says("content-length: 0")) as plain, pytest.raises(NotConnected):
        create(client, f"https://127.0.0.1:{plain.port}/")


@pytest.mark.parametrize("last_words", [b"", b"HTTP/1.1 502 Bad Gateway\r\n\r\n"])
def test_tls_that_breaks_after_the_request_may_have_been_sent(tmp_path, last_words):
    """What a broken server says in clear is an error of TLS too, but the request has arrived: sent
    again, a generation would be paid for twice."""
    context, certificate = authority(tmp_path, "127.0.0.1")

    def die(connection, _):
        with socket.socket(fileno=connection.detach()) as bare:
            bare.sendall(last_words)

    with server(die, context=context) as up:
        with pytest.raises(NoReply):
            create(HttpClient(ca_file=certificate), f"https://127.0.0.1:{up.port}/")
        assert len(up.heads) == 1
