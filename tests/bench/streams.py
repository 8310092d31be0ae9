"""Many open slow streams: how much later than sent does each chunk arrive?

The upstream writes a delta each half second on every stream, with the time of writing as its text;
the client compares it with the time of reading. Both are processes of their own on this machine,
so both read the same clock.

    python -m tests.bench.streams upstream PORT SECONDS
    python -m tests.bench.streams client PORT PATH KEY STREAMS SECONDS
"""

import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import msgspec

from tests.bench.answers import Case, answer, request_body
from tests.bench.process import free_port, stop, wait_for_port

EACH_S = 0.5
OPENING_S = 4.0  # the streams are opened one by one over this time
CASE = Case("anthropic", "slow", "small", 1000)
_STAMP = re.compile(rb'"text":"(\d{19})"')


class Delays(msgspec.Struct):
    """Milliseconds from the upstream's write to the client's read, without the opening."""

    streams: int
    complete: int  # streams that arrived whole
    chunks: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


@contextmanager
def slow_upstream(seconds: float):
    """Its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.streams", "upstream", str(port), str(seconds)]
    )
    try:
        wait_for_port(port, process)
        yield port
    finally:
        stop(process)


class Client:
    """The client as a process: `open()` returns when all streams are open."""

    def __init__(self, port: int, path: str, key: str, streams: int, seconds: float) -> None:
        arguments = [str(port), path, key, str(streams), str(seconds)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.streams", "client", *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )

    def open(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "open":
            raise RuntimeError("the streams could not be opened")

    def delays(self) -> Delays:
        told, _ = self._process.communicate(timeout=120)
        return msgspec.json.decode(told, type=Delays)


def _serve(port: int, seconds: float) -> None:
    from gevent import sleep
    from gevent.server import StreamServer

    events = answer("anthropic", "sse20").split(b"\n\n")
    first, last = b"\n\n".join(events[:2]) + b"\n\n", b"\n\n".join(events[-4:])
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )

    def chunk(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data)

    def serve(sock, _) -> None:
        while (request := sock.recv(65536)) and b"\r\n\r\n" not in request:
            pass
        if not request:
            return
        sock.sendall(head + chunk(first))
        for _ in range(int(seconds / EACH_S)):
            sleep(EACH_S)
            event = {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": str(time.time_ns())},
            }
            data = json.dumps(event, separators=(",", ":")).encode()
            sock.sendall(chunk(b"event: content_block_delta\ndata: %b\n\n" % data))
        sock.sendall(chunk(last) + b"0\r\n\r\n")

    StreamServer(("127.0.0.1", port), serve, backlog=4096).serve_forever()


def _ask(port: int, path: str, key: str, streams: int, seconds: float) -> None:
    import gevent
    from gevent import socket

    body = request_body(CASE)
    asked = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-api-key: {key}\r\n"
        f"anthropic-version: 2023-06-01\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    delays: list[int] = []
    state = {"open": 0, "complete": 0, "counting": False}

    def one() -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(asked)
        tail = sock.recv(65536)
        if not tail.startswith(b"HTTP/1.1 200"):
            return
        state["open"] += 1
        while not tail.endswith(b"0\r\n\r\n"):
            data = sock.recv(65536)
            if not data:
                return
            now = time.time_ns()
            if state["counting"]:
                delays.extend(now - int(stamp) for stamp in _STAMP.findall(data))
            tail = (tail + data)[-16:]
        state["complete"] += 1

    tasks = []
    for number in range(streams):
        tasks.append(gevent.spawn_later(number * OPENING_S / streams, one))
    gevent.sleep(OPENING_S + 0.5)
    while state["open"] < streams and not all(task.ready() for task in tasks):
        gevent.sleep(0.1)
    print("open", flush=True)
    state["counting"] = True
    gevent.joinall(tasks, timeout=seconds + 60)
    delays.sort()

    def at(quantile: float) -> float:
        return delays[min(len(delays) - 1, int(quantile * len(delays)))] / 1e6 if delays else 0.0

    told = Delays(streams, state["complete"], len(delays), at(0.5), at(0.99), at(0.999), at(1.0))
    print(msgspec.json.encode(told).decode())


if __name__ == "__main__":
    if sys.argv[1] == "upstream":
        _serve(int(sys.argv[2]), float(sys.argv[3]))
    else:
        _ask(int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]), float(sys.argv[6]))
