"""A client that sees every byte: raw HTTP/1.1 over a socket, each read with its arrival time."""

import json
import socket
import time

PATHS = {"anthropic": "/v1/messages", "chat": "/v1/chat/completions", "responses": "/v1/responses"}


class Reply:
    """A reply whose head has arrived. `headers` keep order and repeats, names in lower case."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._held = b""
        while b"\r\n\r\n" not in self._held:
            data = sock.recv(65536)
            if not data:
                raise ConnectionError(f"closed in the head: {self._held!r}")
            self._held += data
        self.head_time_s = time.time()
        self.raw_head, _, self._held = self._held.partition(b"\r\n\r\n")
        lines = self.raw_head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.headers = [
            (name.lower(), value.strip())
            for name, _, value in (line.partition(":") for line in lines[1:])
        ]
        self.came_with_head = bool(self._held)
        self.whole = False  # the message ended as HTTP says

    def header(self, name: str) -> str:
        """The value of a header, empty when absent; fails when it is there twice."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, (name, values)
        return values[0] if values else ""

    def reads(self):
        """(arrival in seconds, body bytes) as they come, until the end of the message."""
        if self.header("transfer-encoding") == "chunked":
            yield from self._chunks()
            return
        left = int(self.header("content-length") or 0)
        while left:
            data = self._held or self._sock.recv(65536)
            self._held = b""
            if not data:
                return
            left -= len(data)
            yield time.time(), data
        self.whole = True

    def _line(self) -> bytes | None:
        while b"\r\n" not in self._held:
            if not self._more():
                return None
        line, _, self._held = self._held.partition(b"\r\n")
        return line

    def _more(self) -> bool:
        try:
            data = self._sock.recv(65536)
        except ConnectionResetError:
            data = b""
        self._held += data
        return bool(data)

    def _chunks(self):
        while (line := self._line()) is not None:
            size = int(line.split(b";")[0], 16)
            while len(self._held) < size + 2:
                if not self._more():
                    return
            data, self._held = self._held[:size], self._held[size + 2 :]
            if not size:
                self.whole = True
                return
            yield time.time(), data

    def body(self) -> bytes:
        return b"".join(data for _, data in self.reads())

    def json(self):
        return json.loads(self.body())

    def close(self) -> None:
        self._sock.close()


def send(port: int, raw: bytes, timeout_s: float = 15.0) -> Reply:
    """Sends raw bytes and waits for the head of the reply."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
    sock.sendall(raw)
    return Reply(sock)


def request(
    port: int,
    method: str,
    target: str,
    *,
    key: str = "",
    headers: list[tuple[str, str]] | None = None,
    body: bytes = b"",
    timeout_s: float = 15.0,
) -> Reply:
    fields = [("host", f"127.0.0.1:{port}"), *(headers or [])]
    if key:
        fields.append(("x-api-key", key))
    if body:
        fields.append(("content-length", str(len(body))))
    if body and not any(name == "content-type" for name, _ in fields):
        fields.append(("content-type", "application/json"))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return send(port, f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body, timeout_s)


def text_body(dialect: str, *, stream: bool, text: str = "say hello", **more) -> bytes:
    """A small request of the dialect for a priced model."""
    model = "claude-haiku-4-5" if dialect == "anthropic" else "gpt-5-mini"
    asked = {"model": model, "stream": stream, **more}
    if dialect == "responses":
        return json.dumps({"max_output_tokens": 500, **asked, "input": text}).encode()
    turn = {"messages": [{"role": "user", "content": text}]}
    return json.dumps({"max_tokens": 500, **asked, **turn}).encode()


def post(stack, dialect: str, key: str, *, stream: bool, path: str = "", **more) -> Reply:
    """A small text request; `more` goes to `text_body`."""
    body = text_body(dialect, stream=stream, **more)
    return request(stack.port, "POST", path or PATHS[dialect], key=key, body=body)


def frames(raw: bytes) -> list[tuple[str, str]]:
    """(event, data) of each SSE frame; comments have the event `:`."""
    out = []
    for frame in raw.split(b"\n\n"):
        event, data = "", ""
        for line in frame.decode().split("\n"):
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: "):
                data = line[6:]
            elif line.startswith(":"):
                event = ":"
        if frame:
            out.append((event, data))
    return out
