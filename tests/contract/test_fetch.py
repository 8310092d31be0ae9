"""The fetcher against real servers on this machine: where it connects, when it stops."""

import socket
import threading
import time

import pytest

from services.backends.http.fetch import Fetcher, FetchFailed, FetchRefused
from services.core.netguard import Guard
from tests.parts.odd_server import OK, authority, says, server


def fetch(fetcher, url, **options):
    with fetcher.get(url, **{"limit_bytes": 1_000_000, "deadline_s": 20, **options}) as got:
        return got.status, b"".join(got.chunks())


@pytest.fixture
def fetcher():
    return Fetcher(Guard(["127.0.0.0/8"]), connect_timeout_s=2, read_timeout_s=5)


def test_a_body_with_its_length(fetcher):
    with server(says("content-type: image/png", "content-length: 4", body=b"abcd")) as there:
        with fetcher.get(there.url + "/x?y=1", limit_bytes=4, deadline_s=20) as got:
            assert (got.status, got.type, got.url) == (200, "image/png", there.url + "/x?y=1")
            assert b"".join(got.chunks()) == b"abcd"
        head = there.heads[0].lower()
        assert head.startswith(b"get /x?y=1 http/1.1\r\n")
        assert f"host: 127.0.0.1:{there.port}".encode() in head
        assert b"accept-encoding: identity" in head


def test_a_chunked_body(fetcher):
    body = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    with server(says("transfer-encoding: chunked", body=body)) as there:
        assert fetch(fetcher, there.url) == (200, b"abcde")


def test_other_statuses_are_told(fetcher):
    with server(says("HTTP/1.1 410 Gone", "content-length: 2", body=b"no")) as there:
        assert fetch(fetcher, there.url) == (410, b"no")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{}/", "http://localhost:{}/", "http://2130706433:{}/", "http://0:{}/"]
)
def test_closed_addresses_are_not_connected_to(url):
    with server(says("content-length: 0")) as there:
        with pytest.raises(FetchRefused, match=r"not open"):
            fetch(Fetcher(Guard()), url.format(there.port))
        assert there.heads == []


def test_bad_urls_are_refused(fetcher):
    for url in ("file:///etc/passwd", "http://user@127.0.0.1:8000/", "http://127.0.0.1:22/"):
        with pytest.raises(FetchRefused):
            fetch(fetcher, url)


def test_a_name_is_looked_up_once_and_that_address_is_used(monkeypatch):
    """The second answer of a name server, one that changes its mind, is never asked for."""
    answers = [["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1"]]
    asked = []

    def lookup(host, port, *_, **__):
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    guard = Guard(["127.0.0.2"])
    with server(says("content-length: 4", body=b"open"), host="127.0.0.2") as there:
        monkeypatch.setattr("socket.getaddrinfo", lookup)
        fetcher = Fetcher(guard)
        assert fetch(fetcher, f"http://rebind.example:{there.port}/") == (200, b"open")
        assert asked == ["rebind.example"]
        assert f"host: rebind.example:{there.port}".encode() in there.heads[0].lower()
        with pytest.raises(FetchRefused, match=r"127\.0\.0\.1"):
            fetch(fetcher, f"http://rebind.example:{there.port}/")


def test_one_closed_address_among_several_refuses_the_name(monkeypatch):
    monkeypatch.setattr(
        "socket.getaddrinfo",
        lambda host, port, *_, **__: [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in ("127.0.0.2", "10.0.0.1")
        ],
    )
    with server(says("content-length: 0"), host="127.0.0.2") as there:
        with pytest.raises(FetchRefused, match=r"10\.0\.0\.1"):
            fetch(Fetcher(Guard(["127.0.0.2"])), f"http://mixed.example:{there.port}/")
        assert there.heads == []


def test_the_next_address_is_tried_when_one_does_not_answer(monkeypatch, fetcher):
    with server(says("content-length: 2", body=b"ok")) as there:
        monkeypatch.setattr(
            "socket.getaddrinfo",
            lambda host, port, *_, **__: [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
                for each in ("127.0.0.9", "127.0.0.1")
            ],
        )
        assert fetch(fetcher, f"http://two.example:{there.port}/") == (200, b"ok")


def redirects(*places):
    """Sends each request of `/0`, `/1` ... to the place of its number."""

    def answer(connection, head):
        number = int(head.split(b" ")[1].strip(b"/") or 0)
        if number < len(places):
            line = f"HTTP/1.1 302 Found\r\nlocation: {places[number]}\r\ncontent-length: 0\r\n\r\n"
            connection.sendall(line.encode("latin-1"))
        else:
            connection.sendall(OK + b"content-length: 4\r\n\r\ndone")

    return answer


def test_three_redirects_are_followed_and_no_fourth(fetcher):
    with server(redirects("/1", "/2", "/3")) as there:
        assert fetch(fetcher, there.url + "/0") == (200, b"done")
    with (
        server(redirects("/1", "/2", "/3", "/4")) as there,
        pytest.raises(FetchRefused, match="more than 3"),
    ):
        fetch(fetcher, there.url + "/0")


@pytest.mark.parametrize(
    "place",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://[::1]:8080/",
        "file:///etc/passwd",
        "//user:secret@127.0.0.1:8000/",
        "http://[bad/",
        "http://\xe4.example/",
        "http:///",
    ],
)
def test_a_redirect_to_a_closed_place_is_refused(place):
    fetcher = Fetcher(Guard(["127.0.0.1"]))
    with server(redirects(place)) as there, pytest.raises(FetchRefused):
        fetch(fetcher, there.url + "/0")


def test_the_body_of_a_redirect_is_not_read(fetcher):
    def answer(connection, head):
        if b" /0 " not in head:
            return connection.sendall(OK + b"content-length: 4\r\n\r\ndone")
        connection.sendall(b"HTTP/1.1 302 Found\r\nlocation: /1\r\n\r\n")
        while True:
            connection.sendall(bytes(65_536))

    with server(answer) as there:
        assert fetch(fetcher, there.url + "/0") == (200, b"done")


def test_headers_stay_at_their_origin(fetcher):
    with (
        server(says("content-length: 2", body=b"ok"), host="127.0.0.2") as other,
        server(redirects("/1", other.url + "/2")) as there,
    ):
        assert fetch(fetcher, there.url + "/0", headers={"authorization": "Bearer s"})[1] == b"ok"
        assert [b"Bearer s" in head for head in there.heads] == [True, True]
        assert [b"Bearer s" in head for head in other.heads] == [False]


def test_a_trusted_origin_may_be_closed_but_not_what_it_redirects_to():
    fetcher = Fetcher(Guard())
    with server(says("content-length: 2", body=b"ok"), host="127.0.0.2") as other:
        with server(redirects("/1")) as there:
            trusted = there.url + "/v1"
            assert fetch(fetcher, there.url + "/0", trusted=trusted) == (200, b"done")
        with server(redirects(other.url + "/2")) as there, pytest.raises(FetchRefused):
            fetch(fetcher, there.url + "/0", trusted=there.url)
        assert other.heads == []


def test_a_told_length_over_the_limit_is_refused_before_the_body(fetcher):
    with (
        server(says("content-length: 1000001")) as there,
        pytest.raises(FetchRefused, match="larger than 1000000"),
    ):
        fetch(fetcher, there.url)


def test_an_untold_length_over_the_limit_stops_the_download(fetcher):
    def flood(connection, _):
        connection.sendall(OK + b"transfer-encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + bytes(65_536) + b"\r\n")

    with server(flood) as there, pytest.raises(FetchRefused, match="larger than"):
        fetch(fetcher, there.url)


def test_a_length_that_promises_more_than_comes_is_a_failure(fetcher):
    with server(says("content-length: 10", body=b"half")) as there, pytest.raises(FetchFailed):
        fetch(fetcher, there.url)


def test_a_chunked_body_without_its_end_is_a_failure(fetcher):
    with (
        server(says("transfer-encoding: chunked", body=b"3\r\nabc\r\n")) as there,
        pytest.raises(FetchFailed),
    ):
        fetch(fetcher, there.url)


def test_a_length_that_promises_less_is_the_length(fetcher):
    with server(says("content-length: 2", body=b"abcdef")) as there:
        assert fetch(fetcher, there.url) == (200, b"ab")


def drip(connection, head, every_s=0.1):
    connection.sendall(head)
    while True:
        connection.sendall(b"x")
        time.sleep(every_s)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        OK + b"x-slow: ",
        OK + b"content-length: 1000\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nfff\r\n",
        OK + b"connection: close\r\n\r\n",
    ],
    ids=["status", "headers", "length", "chunk", "until-close"],
)
def test_a_drip_of_bytes_does_not_outlast_the_deadline(fetcher, head):
    with server(lambda connection, _: drip(connection, head)) as there:
        began = time.monotonic()
        with pytest.raises(FetchFailed, match="too long"):
            fetch(fetcher, there.url, deadline_s=0.7)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        OK + b"x: y\r\n" * 1_000 + b"\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        OK + b"content-length: -5\r\n\r\nabc",
    ],
)
def test_what_is_no_http_is_a_failure_or_an_answer(fetcher, raw):
    with server(lambda connection, _: connection.sendall(raw)) as there:
        try:
            status, _ = fetch(fetcher, there.url)
        except FetchFailed:
            return
        assert (status, raw[:15]) == (200, OK[:15])


def test_silence_is_a_failure():
    fetcher = Fetcher(Guard(["127.0.0.1"]), read_timeout_s=0.3)
    with server(lambda connection, _: connection.recv(1)) as there, pytest.raises(FetchFailed):
        fetch(fetcher, there.url)


def test_a_closed_port_is_a_failure(fetcher):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(FetchFailed):
        fetch(fetcher, f"http://127.0.0.1:{port}/")


def test_types_and_encodings(fetcher):
    with server(says("content-type: text/html; charset=x", "content-length: 0")) as there:
        assert fetch(fetcher, there.url, types=("text/",)) == (200, b"")
        with pytest.raises(FetchRefused, match="text/html"):
            fetch(fetcher, there.url, types=("image/", "video/"))
    with (
        server(says("content-encoding: gzip", "content-length: 0")) as there,
        pytest.raises(FetchRefused, match="compressed"),
    ):
        fetch(fetcher, there.url)


def test_deliveries_send_the_raw_body_and_do_not_follow(fetcher):
    bodies = []

    def answer(connection, head):
        bodies.append(head.partition(b"\r\n\r\n")[2])
        connection.sendall(
            b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 2000\r\n\r\n"
            + b"y" * 2000
        )

    with server(answer) as there:
        told = fetcher.send(
            there.url + "/hook", b'{"a":1}', headers={"webhook-id": "m1"}, deadline_s=20
        )
        assert (told.status, told.headers["location"]) == (302, "/elsewhere")
        assert len(told.body) <= 1024
        assert bodies == [b'{"a":1}']
        assert there.heads[0].startswith(b"POST /hook HTTP/1.1\r\n")
        assert b"webhook-id: m1" in there.heads[0]
    with server(says("content-length: 2", body=b"ok")) as there:
        with pytest.raises(FetchRefused):
            Fetcher(Guard()).send(there.url, b"", headers={}, deadline_s=20)
        assert there.heads == []


def test_tls_is_checked_against_the_name_of_the_url(tmp_path, monkeypatch):
    """The connection goes to a checked address; the certificate must be the name's."""
    context, certificate = authority(tmp_path, "media.example")
    told = []
    context.sni_callback = lambda connection, name, _: told.append(name)
    monkeypatch.setattr(
        "socket.getaddrinfo",
        lambda host, port, *_, **__: [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        ],
    )
    guard = Guard(["127.0.0.1"])
    trusting = Fetcher(guard, ca_file=certificate)
    with server(says("content-length: 2", body=b"ok"), context=context) as there:
        assert fetch(trusting, f"https://media.example:{there.port}/") == (200, b"ok")
        assert told == ["media.example"]
        assert b"host: media.example" in there.heads[0].lower()
        with pytest.raises(FetchFailed, match=r"(?i)certificate|hostname"):
            fetch(trusting, f"https://other.example:{there.port}/")
        with pytest.raises(FetchFailed, match=r"(?i)certificate"):
            fetch(Fetcher(guard), f"https://media.example:{there.port}/")
        assert len(there.heads) == 1


def test_no_way_from_https_to_http(tmp_path):
    context, certificate = authority(tmp_path, "127.0.0.1")
    with (
        server(says("content-length: 2", body=b"ok")) as plain,
        server(redirects(plain.url + "/1"), context=context) as there,
    ):
        fetcher = Fetcher(Guard(["127.0.0.1"]), ca_file=certificate)
        with pytest.raises(FetchRefused, match="https to http"):
            fetch(fetcher, f"https://127.0.0.1:{there.port}/0")
        assert plain.heads == []


def test_no_thread_and_no_socket_is_left(fetcher):
    with server(says("content-length: 2", body=b"ok")) as there:
        before = threading.active_count()
        for _ in range(50):
            fetch(fetcher, there.url, deadline_s=300)
        deadline = time.monotonic() + 30
        while threading.active_count() > before + 3:
            assert time.monotonic() < deadline, threading.enumerate()
            time.sleep(0.02)
