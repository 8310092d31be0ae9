"""Terminal events for tests of the sinks: sound, cheap, and as many as wanted."""

import time
import uuid

from schemas.errors import Code, Outcome, Stage
from schemas.events import Attempt, Error, Request, Usage, encode
from services.backends.bus.port import Message
from services.meter.booked import NOTHING_DEAD, Fates

# Midnight UTC thirty days ago: neither too old nor in the future for the checks of the sinks.
START_US = (time.time_ns() // 1000 // 86_400_000_000 - 30) * 86_400_000_000
MODEL = "claude-sonnet-4-6"


def request_id(number: int) -> str:
    return str(uuid.UUID(int=(0x0199 << 112) | (7 << 76) | (8 << 60) | number))


def common(number: int, **fields) -> dict:
    defaults = {
        "account_id": "acct_a",
        "key_id": "key_a",
        "occurred_at": START_US + number * 1000,
        "source": "edge",
        "request_id": request_id(number),
        "incarnation": "edge-1",
        "seq": number + 1,
        "dialect": "anthropic",
        "path": "/v1/messages",
        "model": MODEL,
        "group": "default",
        "price_version": "pv_1",
        "stream": True,
        "session_id": "session-1",
    }
    return {**defaults, **fields}


def usage(number: int, **fields) -> Usage:
    """Costs `number + 1` microdollars unless told otherwise."""
    cost_nano = fields.pop("cost_nano", (number + 1) * 1000)
    defaults = {
        "event_id": f"{request_id(number)}:usage",
        "status": 200,
        "outcome": Outcome.COMPLETED,
        "priced_as": MODEL,
        "upstream_model": MODEL,
        "channel": "sim",
        "ttfb_ms": 120,
        "total_ms": 900,
        "attempts": [Attempt(channel="sim", status=200, started_at=START_US, total_ms=880)],
        "usage": {"input": 100, "cache_read": 1000, "output": 50},
        "multiplier_ppm": 1_000_000,
        "cost_nano": cost_nano,
        "charged_nano": cost_nano,
        "provider_cost_nano": cost_nano,
    }
    return Usage(**common(number, **{**defaults, **fields}))


def error(number: int, **fields) -> Error:
    defaults = {
        "event_id": f"{request_id(number)}:error",
        "status": 502,
        "outcome": Outcome.FAILED,
        "code": Code.UPSTREAM_ERROR,
        "stage": Stage.UPSTREAM,
        "message": "the upstream answered 500",
        "channel": "sim",
        "priced_as": MODEL,
    }
    return Error(**common(number, **{**defaults, **fields}))


def request(number: int, **fields) -> Request:
    defaults = {"event_id": f"{request_id(number)}:request", "hold_nano": 10**9}
    return Request(**common(number, **{**defaults, **fields}))


def messages(events, *, topic="tollgate.events.v1", partition=0, first=0) -> list[Message]:
    """As the bus would give them: offsets from `first`, taken a second after they happened."""
    return [
        Message(topic, partition, offset, e.account_id, encode(e), e.occurred_at + 1_000_000)
        for offset, e in enumerate(events, first)
    ]


class AllBooked:
    """Stands for a ledger that has taken everything and set nothing aside."""

    def reached(self, partition: int) -> int:
        return 1 << 62

    def fates(self, partition: int, messages: object) -> Fates:
        return NOTHING_DEAD
