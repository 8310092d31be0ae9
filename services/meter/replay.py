"""Sends a part of the log through the sinks once more: the same bytes at new offsets.

The strongest proof that nothing is counted twice, and it needs nothing of the sinks: a running
meter books none of it, a stopped one will book none of it later.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from schemas.events import TOPIC
from services.backends.bus.port import Bus, Producer, Record

_BATCH: Final = 1000


class Replayed(msgspec.Struct):
    """What was sent: events per partition, and in all."""

    partitions: dict[int, int]
    events: int
    bytes: int


def replay(
    bus: Bus, from_us: int | None = None, to_us: int | None = None, *, topic: str = TOPIC
) -> Replayed:
    """Appends every event that the log took in [`from_us`, `to_us`) (microseconds, None: open)
    again. Bounded by the end offsets at the start. Raises BusUnavailable: part of it was sent
    then, and running it again is harmless."""
    producer = bus.producer()
    counts: dict[int, int] = {}
    size = 0
    try:
        for partition, (first, end) in sorted(bus.bounds(topic).items()):
            records = _range(bus, topic, partition, first, end - 1, from_us, to_us)
            counts[partition], sent_bytes = _send(producer, topic, records)
            size += sent_bytes
    finally:
        producer.close()
    return Replayed(partitions=counts, events=sum(counts.values()), bytes=size)


def _range(
    bus: Bus,
    topic: str,
    partition: int,
    first: int,
    last: int,
    from_us: int | None,
    to_us: int | None,
) -> Iterator[Record]:
    if last < first:
        return
    for message in bus.read(topic, partition, first, last):
        if from_us is not None and message.timestamp_us < from_us:
            continue
        if to_us is not None and message.timestamp_us >= to_us:
            continue
        yield Record(message.key, message.value)


def _send(producer: Producer, topic: str, records: Iterator[Record]) -> tuple[int, int]:
    """Events and bytes sent."""
    sent = size = 0
    batch: list[Record] = []
    for record in records:
        batch.append(record)
        size += len(record.value)
        if len(batch) == _BATCH:
            producer.send(topic, batch)
            sent += len(batch)
            batch = []
    if batch:
        producer.send(topic, batch)
        sent += len(batch)
    return sent, size
