"""Which texts make an event impossible to store."""

from pathlib import Path

import msgspec
import pytest

from schemas.events import decode, encode
from services.meter.dead import Poison, Reason, read_event

GOLDEN = Path(__file__).parent.parent / "golden" / "events" / "request.v1.json"


def event(session_id):
    return encode(msgspec.structs.replace(decode(GOLDEN.read_bytes()), session_id=session_id))


def test_nul_is_refused():
    with pytest.raises(Poison) as raised:
        read_event(event("a\0b"))
    assert raised.value.reason is Reason.BAD_SCHEMA


def test_a_backslash_before_u0000_is_a_plain_text():
    assert read_event(event("a\\u0000b")).session_id == "a\\u0000b"
