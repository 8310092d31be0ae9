"""Sending a batch of which single records may be refused, and remembering those."""

from typing import Final

import msgspec

from schemas.events import TOPIC
from services.backends.bus.port import Producer, Record, RecordTooLarge
from services.backends.outbox_files import Row
from services.backends.telemetry import get_logger, metric
from services.meter.relay_store import Beside, Dead


class Facts(msgspec.Struct):
    event_id: str
    occurred_at: int


_facts: Final = msgspec.json.Decoder(Facts)


def facts_of(body: bytes) -> Facts:
    """What the relay reads of an event. Raises `msgspec.MsgspecError`."""
    return _facts.decode(body)


def send_all(producer: Producer, records: list[Record]) -> list[int]:
    """Sends all that can be sent; the indexes of the others. Raises `BusUnavailable`."""
    places = list(range(len(records)))
    refused: list[int] = []
    while places:
        try:
            producer.send(TOPIC, [records[place] for place in places])
            break
        except RecordTooLarge as error:
            refused.append(places.pop(error.index))
            metric("tollgate_ship_errors_total").labels("too_large").inc()
            get_logger().critical("event_too_large", size_bytes=error.size_bytes)
    return refused


def dead_row(incarnation: str, seq: int, reason: str, record: Record, now_us: int) -> Dead:
    """What is kept of a record that cannot be sent."""
    try:
        event_id = facts_of(record.value).event_id
    except msgspec.MsgspecError:
        event_id = ""
    return Dead(incarnation, seq, event_id, reason, record.key, record.value, now_us)


def damaged_row(incarnation: str, row: Row, now_us: int) -> Dead:
    """What is kept of a row whose bytes are not those that were written."""
    beside = Beside(row.kind, row.request_id, row.lease_id, row.lease_seq)
    dead = dead_row(incarnation, row.seq, "checksum", Record(row.partition_key, row.body), now_us)
    return dead._replace(beside=msgspec.json.encode(beside).decode())
