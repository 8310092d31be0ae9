"""The log of what was served: JSON lines on disk, the newest calls in memory."""

import re
import time
from base64 import b64encode
from collections import Counter, deque
from hashlib import sha256
from typing import IO, Any, Final

import orjson

from services.sim.http import Connection, Request

_CREDENTIALS: Final = ("authorization", "x-api-key", "x-goog-api-key", "api-key", "cookie")
_KEPT_CALLS: Final = 100_000
_KEPT_RAW: Final = 64


def masked(value: str) -> str:
    return "..." + value[-4:]


class CallLog:
    """Bounded in memory: the last 100,000 calls and the raw bytes of the last 64."""

    def __init__(self, path: str | None) -> None:
        self._file: IO[bytes] | None = open(path, "ab") if path else None  # noqa: SIM115
        self._calls: deque[tuple[int, bytes]] = deque(maxlen=_KEPT_CALLS)  # id, JSON
        self._raw: deque[dict[str, Any]] = deque(maxlen=_KEPT_RAW)
        self._next_id = 1
        self.failed: Counter[str] = Counter()  # sim-flaky: failures served by session

    def open(self, request: Request) -> dict[str, Any]:
        """The entry of a call that begins; `close` completes and writes it."""
        entry = {
            "id": self._next_id,
            "time_us": int(time.time() * 1e6),
            "method": request.method,
            "path": re.sub(r"([?&]key=)[^&]*", r"\1...", request.target),
            "headers": [
                [name, masked(value) if name in _CREDENTIALS else value]
                for name, value in request.fields
            ],
            "body_bytes": len(request.body),
            "body_sha256": sha256(request.body).hexdigest(),
            "dialect": "",
            "model": "",
            "stream": False,
            "fault": None,
            "finish": None,
            "usage": None,
            "units": {},
            "charge_usd": None,
            "client_gone": False,
            "events_sent": 0,
            "event_times_us": [],
        }
        self._next_id += 1
        return entry

    def close(self, entry: dict[str, Any], request: Request, connection: Connection) -> None:
        entry["status"] = connection.status
        entry["bytes_sent"] = connection.bytes_sent
        entry["total_ms"] = round(time.time() * 1e3 - entry["time_us"] / 1e3, 3)
        # Joined to a copy of its own size: what orjson gives occupies some kilobytes more.
        line = b"".join((orjson.dumps(entry), b"\n"))
        self._calls.append((entry["id"], line))
        self._raw.append(
            {
                "id": entry["id"],
                "head": request.raw_head,
                "body": request.body,
                "reply_status": connection.status,
                "reply_headers": connection.reply_head,
                "reply_body": bytes(connection.reply_body),
            }
        )
        if self._file:
            self._file.write(line)
            self._file.flush()

    def calls(self, after: int) -> list[orjson.Fragment]:
        """Entries as JSON, oldest first."""
        return [orjson.Fragment(line) for call_id, line in self._calls if call_id > after]

    @property
    def last_id(self) -> int:
        """Of the calls that have begun; 0 before the first."""
        return self._next_id - 1

    def raw(self, which: str) -> dict[str, Any] | None:
        """The raw bytes of the last call, or of the call with this id while it is kept."""
        wanted = str(self._raw[-1]["id"]) if which == "last" and self._raw else which
        found = next((raw for raw in self._raw if str(raw["id"]) == wanted), None)
        if found is None:
            return None
        coded = {name: b64encode(found[name]).decode() for name in ("head", "body", "reply_body")}
        return {**found, **coded}

    def reset(self) -> None:
        self._calls.clear()
        self._raw.clear()
        self.failed.clear()
