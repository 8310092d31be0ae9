"""Shorthands of the feature tests, over a running stack."""

import json
import os
import re
import time
from pathlib import Path

import psutil

from services.backends.admin_key import AdminKey
from services.backends.sql.catalog_readers import PATIENCE_S
from services.core.catalog import Key
from tests.parts.stack import Stack
from tests.parts.wire import Reply, request

NANO = 10**9
ACCOUNTING = (
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-quota-remaining-credits",
    "x-estimated-credits",
)


def make_key(stack: Stack, *, account: str = "", **fields) -> tuple[Key, str]:
    """The key's record and its secret; `fields` as `Catalog.create_key` names them."""
    owner = account or stack.new_account()
    return stack._open_books().catalog.create_key(owner, "test", **fields)


def wait_until(condition, timeout_s: float = 30.0, told=lambda: ""):
    """The first true value of `condition`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)
    return value


def within(limit_s: float, took_s, tries: int = 3) -> None:
    """For a promise that is a time: `took_s` does what is timed on a set-up of its own and tells
    its seconds. The machine may stand still once or twice: the best of the tries counts."""
    seen: list[float] = []
    while not seen or min(seen) >= limit_s:
        assert len(seen) < tries, f"{seen} s, not within {limit_s} s"
        seen.append(took_s())


def wait_everywhere(condition, timeout_s: float = 30.0):
    """Until `condition` holds for a second: every worker knows it then, whichever was asked."""
    deadline, since = time.monotonic() + timeout_s, time.monotonic()
    while time.monotonic() - since < 1.0:
        assert time.monotonic() < deadline
        if not condition():
            since = time.monotonic()
        time.sleep(0.05)


def wait_acted(stack: Stack) -> None:
    """Until every worker acts on what the catalog holds now."""
    readers = stack._open_books().readers
    version = readers.version()
    wait_until(lambda: not readers.behind(version))


def each_worker(stack: Stack, path: str, key: str, count: int = 12) -> list[Reply]:
    """`count` answers to a GET, each on a connection of its own, so that every worker gives
    some of them."""
    return [request(stack.port, "GET", path, key=key) for _ in range(count)]


def statuses(stack: Stack, key: str) -> set[int]:
    """What every worker says to the key."""
    return {reply.status for reply in each_worker(stack, "/v1/models", key)}


def balances(stack: Stack, key: str) -> set[float]:
    """`available_usd` as every worker tells it."""
    return {r.json()["available_usd"] for r in each_worker(stack, "/v1/balance", key)}


def assert_accounted(reply: Reply) -> None:
    """The five accounting headers in their forms, each once, and the request id."""
    values = {name: reply.header(name) for name in ACCOUNTING}
    for name in ACCOUNTING[:2] + ACCOUNTING[3:4]:
        assert re.fullmatch(r"\d+\.\d\d", values[name]), (reply.status, values)
    assert values["x-ratelimit-reset"].isdecimal(), values
    assert values["x-estimated-credits"].isdecimal(), values
    assert re.fullmatch(r"[0-9a-f-]{36}", reply.header("x-tollgate-request-id"))


def processes(stack: Stack) -> list[psutil.Process]:
    """`tollgate up` and everything it started."""
    root = psutil.Process(stack._process.pid)
    return [root, *root.children(recursive=True)]


def worker_of(stack: Stack, reply: Reply) -> psutil.Process:
    """The edge worker at the other end of the reply's connection."""
    port = reply._sock.getsockname()[1]
    for process in processes(stack):
        for connection in process.net_connections("tcp"):
            if connection.raddr and connection.raddr.port == port:
                return process
    raise LookupError(f"nobody serves the client port {port}")


def files(stack: Stack, suffix: str = "") -> list[Path]:
    """The files of the installation and its output. Folders that the outbox and the sinks remove
    meanwhile are left out."""
    found = [
        Path(folder) / name
        for folder, _, names in os.walk(stack.data_dir)
        for name in names
        if name.endswith(suffix)
    ]
    return [*(path for path in found if path.is_file()), stack.output]


def holders(stack: Stack, text: str) -> list[str]:
    """The files of the installation, its logs among them, that hold `text`."""
    found = []
    for path in files(stack):
        try:
            if text.encode() in path.read_bytes():
                found.append(path.name)
        except FileNotFoundError:
            continue
    return found


def api(stack: Stack, method: str, path: str, key: str, body: object = None) -> Reply:
    """One call of the management API; `path` below `/api/v1`. A change is answered when every
    worker acts on it, or after a second: then one stood still, and is waited for here."""
    raw = b"" if body is None else json.dumps(body).encode()
    began_s = time.monotonic()
    reply = request(stack.port, method, f"/api/v1{path}", key=key, body=raw)
    if method != "GET" and time.monotonic() - began_s >= PATIENCE_S:
        wait_acted(stack)
    return reply


def admin_key(stack: Stack) -> str:
    """The operator's credential of the installation."""
    return AdminKey(stack.data_dir).secret()


def refused(reply: Reply) -> tuple[int, str, str | None]:
    """(status, code, param) of a refusal."""
    error = reply.json()["error"]
    return reply.status, error["code"], error["param"]
