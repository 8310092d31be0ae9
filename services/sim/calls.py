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
        self._calls: deque[dict[str, Any]] = deque(maxlen=_KEPT_CALLS)
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
        self._calls.append(entry)
        self._raw.append(
            {
                "id": entry["id"],
                "head": b64encode(request.raw_head).decode(),
                "body": b64encode(request.body).decode(),
                "reply_status": connection.status,
                "reply_headers": connection.reply_head,
                "reply_body": b64encode(connection.reply_body).decode(),
            }
        )
        if self._file:
            self._file.write(orjson.dumps(entry) + b"\n")
            self._file.flush()

    def calls(self, after: int) -> list[dict[str, Any]]:
        return [entry for entry in self._calls if entry["id"] > after]

    def raw(self, which: str) -> dict[str, Any] | None:
        """The raw bytes of the last call, or of the call with this id while it is kept."""
        if which == "last":
            return self._raw[-1] if self._raw else None
        return next((raw for raw in self._raw if str(raw["id"]) == which), None)

    def reset(self) -> None:
        self._calls.clear()
        self._raw.clear()
        self.failed.clear()
