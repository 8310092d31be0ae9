"""Sending on Kafka: one client at a time, made anew after every doubt.

What the settings guard against, measured on kafka-python 3.0.12: an idempotent producer that passes
its delivery timeout never sends again, so the timeout is huge, and a producer that makes no
progress is replaced.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import kafka
from kafka import errors

from services.backends.bus.kafka_topics import CALL_MS, describe
from services.backends.bus.port import (
    MAX_RECORD_BYTES,
    BusUnavailable,
    Record,
    RecordTooLarge,
    size_bytes,
)
from services.backends.telemetry import metric

_FOREVER_MS: Final = 24 * 3600 * 1000
_LINGER_MS: Final = 60_000  # `flush` sends; before it a chunk is whole
_RECORD_OVERHEAD: Final = 64
_BATCH_OVERHEAD: Final = 256
_TOPIC_LIMIT: Final = "max.message.bytes"


class KafkaProducer:
    """Memory is bounded by the caller's batch: nothing stays queued after `send`.

    Order per key must hold also when a send fails half way and is repeated. So there is never
    more than one record batch of a partition under way: records go out in chunks that fit one
    batch each, and a chunk follows when the one before is acknowledged."""

    def __init__(self, settings: dict[str, Any], prefix: str, stall_s: float) -> None:
        self._settings = settings
        self._prefix = prefix
        self._stall_s = stall_s
        self._client: Any = None
        self._limits: dict[str, int] = {}
        self.rebuilds = 0

    def send(self, topic: str, records: Sequence[Record]) -> None:
        try:
            self._send(self._prefix + topic, records)
        except errors.KafkaConfigurationError:
            raise
        except errors.KafkaError as error:
            self._drop()
            raise BusUnavailable(f"kafka: {type(error).__name__}: {error}") from error

    def _send(self, topic: str, records: Sequence[Record]) -> None:
        limit_bytes = self._limit_bytes(topic)
        sizes = [size_bytes(record) + _RECORD_OVERHEAD for record in records]
        for index, size in enumerate(sizes):
            if size > limit_bytes:
                raise RecordTooLarge(index, size)
        if self._client is None:
            self._client = self._connect()
        first = chunk_bytes = 0
        for index, size in enumerate(sizes):
            if chunk_bytes + size > limit_bytes:
                self._send_chunk(topic, records[first:index])
                first, chunk_bytes = index, 0
            chunk_bytes += size
        self._send_chunk(topic, records[first:])

    def _send_chunk(self, topic: str, records: Sequence[Record]) -> None:
        send = self._client.send
        futures = [send(topic, value=r.value, key=r.key.encode()) for r in records]
        # A timeout means that nothing was acknowledged for so long, whatever state the client
        # believes it is in.
        self._client.flush(timeout=self._stall_s)
        for future in futures:
            future.get(timeout=self._stall_s)

    def _limit_bytes(self, topic: str) -> int:
        """What the broker takes as one record batch of the topic, asked once. A batch that it
        refused would be split by the client, and order could be lost between the halves."""
        known = self._limits.get(topic)
        if known is None:
            limit = int(describe(self._settings, topic, [_TOPIC_LIMIT])[_TOPIC_LIMIT])
            known = min(MAX_RECORD_BYTES + _RECORD_OVERHEAD, limit - _BATCH_OVERHEAD)
            self._limits[topic] = known
        return known

    def _connect(self) -> Any:
        return kafka.KafkaProducer(
            **self._settings,
            acks="all",
            enable_idempotence=True,
            max_in_flight_requests_per_connection=5,
            delivery_timeout_ms=_FOREVER_MS,
            max_block_ms=CALL_MS,
            max_request_size=2 * MAX_RECORD_BYTES,
            batch_size=2 * MAX_RECORD_BYTES,
            linger_ms=_LINGER_MS,
            compression_type="lz4",
        )

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        self.rebuilds += 1
        metric("tollgate_ship_producer_rebuilds_total").inc()
        with contextlib.suppress(errors.KafkaError):  # a wedged client cannot even close
            client.close(timeout=0)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(errors.KafkaError):
                client.close(timeout=CALL_MS / 1000)
