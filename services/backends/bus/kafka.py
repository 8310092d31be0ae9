"""The bus on Kafka 3.x and 4.x brokers, with kafka-python 3.

What the settings below guard against, all measured on 3.0.12: an idempotent producer that passes
its delivery timeout never sends again (so the timeout is huge, and a producer that makes no
progress is replaced); the default reconnect pause grows to 30 s; without the C package
`crc32c` sending and reading are four to eight times slower.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import crc32c
import kafka
from kafka import errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.structs import OffsetAndMetadata, TopicPartition

from schemas import config as schema
from schemas.events import TOPIC
from services.backends.bus.port import (
    MAX_RECORD_BYTES,
    BusUnavailable,
    Message,
    OffsetOutOfRange,
    Record,
    RecordTooLarge,
    size_bytes,
)
from services.backends.telemetry import get_logger, metric

STALL_S: Final = 6.0  # no acknowledgement for this long: the producer is replaced
_FOREVER_MS: Final = 24 * 3600 * 1000
_SESSION_MS: Final = 6_000  # the least that a broker takes unless configured otherwise
_REJOIN_MS: Final = 60_000  # so long others wait for a member that lives but does not come back
_CALL_MS: Final = 5_000
_READ_IDLE_S: Final = 30.0
_LINGER_MS: Final = 60_000  # `flush` sends; before it a chunk is whole
_RECORD_OVERHEAD: Final = 64
_BATCH_OVERHEAD: Final = 256
_TOPIC_LIMIT: Final = "max.message.bytes"
# What a topic is like that keeps all its records.
_KEEPS: Final = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
_NOT_FOR_ADMIN: Final = ("allow_auto_create_topics", "metrics_enabled")
_RETRY_S: Final = 0.5
_WHOLE: Final = 1_000_000  # records: more than an answer of 16 MB holds

assert crc32c.crc32c(b"123456789") == 0xE3069283
# The client logs every failed connection at level ERROR; what matters reaches the callers.
logging.getLogger("kafka").setLevel(logging.CRITICAL)


class KafkaProducer:
    """One client at a time, made anew after every doubt. Memory is bounded by the caller's
    batch: nothing stays queued after `send`.

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
            limit = int(_describe(self._settings, topic, [_TOPIC_LIMIT])[_TOPIC_LIMIT])
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
            max_block_ms=_CALL_MS,
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
                client.close(timeout=_CALL_MS / 1000)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes what changed. The callbacks of the owner run after `poll`, in its own thread, so that
    they may take long (heartbeats go on) and raise. Until then the partitions are paused."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.changes: list[tuple[str, list[int]]] = []

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.changes.append(("revoked", sorted(tp.partition for tp in revoked)))

    def on_partitions_assigned(self, assigned: Any) -> None:
        for tp in assigned:
            self._consumer.seek(tp, 0)  # else the client asks for a committed offset
            self._consumer.pause(tp)
        self.changes.append(("assigned", sorted(tp.partition for tp in assigned)))


class KafkaConsumer:
    def __init__(self, settings: dict[str, Any], prefix: str, group: str) -> None:
        self._settings = settings
        self._prefix = prefix
        self._group = group
        self._topic = ""
        self._client: Any = None
        self._listener: _Listener | None = None
        self._on_assigned: Callable[[list[int]], dict[int, int]] = lambda partitions: {}
        self._on_revoked: Callable[[list[int]], None] = lambda partitions: None
        self._owned: set[int] = set()
        self._paused: set[int] = set()
        self._ready: dict[int, deque[Message]] = {}  # fetched, not handed out yet

    def subscribe(
        self,
        topic: str,
        on_assigned: Callable[[list[int]], dict[int, int]],
        on_revoked: Callable[[list[int]], None],
    ) -> None:
        self._topic = topic
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked

    def poll(self, timeout_s: float, max_records: int) -> dict[int, list[Message]]:
        """The client is asked for all that it has fetched, and what is beyond `max_records` waits
        here: a client (3.0.12) whose partition is paused in the middle of a fetch may never give
        the rest of it, even when resumed. At most one answer of each broker waits."""
        if not any(messages and p not in self._paused for p, messages in self._ready.items()):
            self._fetch(timeout_s)
        found: dict[int, list[Message]] = {}
        room = max_records
        for partition, messages in self._ready.items():
            if messages and room and partition not in self._paused:
                count = min(room, len(messages))
                found[partition] = [messages.popleft() for _ in range(count)]
                room -= count
        for partition in found:  # another partition is first next time, so none starves
            self._ready[partition] = self._ready.pop(partition)
        return found

    def _fetch(self, timeout_s: float) -> None:
        try:
            if self._client is None:
                self._join()
            fetched = self._client.poll(timeout_ms=int(timeout_s * 1000), max_records=_WHOLE)
        except errors.OffsetOutOfRangeError as error:
            raise self._out_of_range(error) from error
        except errors.LogTruncationError as error:
            tp = next(iter(error.divergent_offsets))
            raise OffsetOutOfRange(tp.partition, self._client.position(tp), 0, 0) from error
        except errors.KafkaError as error:
            # Whatever it is, a new member that starts at the owner's positions is right again.
            why = f"{type(error).__name__}: {error}"
            get_logger().warning("group_left", group=self._group, error=why)
            self._leave()
            time.sleep(min(_RETRY_S, timeout_s))
            return
        self._tell_changes()
        for tp, records in fetched.items():
            if tp.partition in self._owned:
                ready = self._ready.setdefault(tp.partition, deque())
                ready.extend(_message(self._topic, record) for record in records)

    def _join(self) -> None:
        self._client = kafka.KafkaConsumer(
            **self._settings,
            group_id=self._prefix + self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            session_timeout_ms=_SESSION_MS,
            heartbeat_interval_ms=_SESSION_MS // 4,
            max_poll_interval_ms=_REJOIN_MS,
            fetch_max_bytes=16 * 1024 * 1024,
            fetch_max_wait_ms=100,
        )
        self._listener = _Listener(self._client)
        self._client.subscribe([self._prefix + self._topic], listener=self._listener)

    def _tell_changes(self) -> None:
        assert self._listener is not None
        changes, self._listener.changes = self._listener.changes, []
        for what, partitions in changes:
            if what == "revoked":
                self._revoke([p for p in partitions if p in self._owned])
                continue
            wanted = self._on_assigned(partitions)
            self._owned.update(partitions)
            for partition, offset in wanted.items():
                with contextlib.suppress(errors.IllegalStateError):  # taken away meanwhile
                    self._client.seek(self._tp(partition), offset)
                    self._client.resume(self._tp(partition))

    def _revoke(self, partitions: list[int]) -> None:
        if partitions:
            self._owned.difference_update(partitions)
            self._paused.difference_update(partitions)
            for partition in partitions:
                self._ready.pop(partition, None)
            self._on_revoked(partitions)

    def _out_of_range(self, error: Any) -> OffsetOutOfRange:
        tp, offset = next(iter(error.args[0].items()))
        first = self._client.beginning_offsets([tp])[tp]
        return OffsetOutOfRange(tp.partition, offset, first, self._client.end_offsets([tp])[tp])

    def commit(self, offsets: dict[int, int]) -> None:
        if self._client is None:
            return
        with contextlib.suppress(errors.KafkaError):
            self._client.commit_async(
                {self._tp(p): OffsetAndMetadata(offset, "", -1) for p, offset in offsets.items()}
            )

    def pause(self, partitions: list[int]) -> None:
        new = [p for p in partitions if p in self._owned and p not in self._paused]
        self._paused.update(new)
        if new:
            self._client.pause(*(self._tp(p) for p in new))

    def resume(self, partitions: list[int]) -> None:
        back = [p for p in partitions if p in self._paused]
        self._paused.difference_update(back)
        if back:
            self._client.resume(*(self._tp(p) for p in back))

    def _tp(self, partition: int) -> Any:
        return TopicPartition(self._prefix + self._topic, partition)

    def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(errors.KafkaError):
                client.close(autocommit=False, timeout_ms=_CALL_MS)
        self._revoke(sorted(self._owned))

    def close(self) -> None:
        self._revoke(sorted(self._owned))
        self._leave()


class KafkaBus:
    """Makes no connection until it is used; every call may raise `BusUnavailable`."""

    def __init__(self, config: schema.Bus, stall_s: float = STALL_S) -> None:
        self._config = config
        self._stall_s = stall_s
        self._settings: dict[str, Any] = {
            "bootstrap_servers": config.bootstrap,
            "client_id": config.client_id,
            "reconnect_backoff_ms": 50,
            "reconnect_backoff_max_ms": 1000,
            "api_version": (4, 0),  # a lower broker is found out; None would block for it
            "bootstrap_timeout_ms": _CALL_MS,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }

    def producer(self) -> KafkaProducer:
        return KafkaProducer(self._settings, self._config.topic_prefix, self._stall_s)

    def consumer(self, group: str) -> KafkaConsumer:
        return KafkaConsumer(self._settings, self._config.topic_prefix, group)

    def read(self, topic: str, partition: int, first: int, last: int) -> Iterator[Message]:
        tp = TopicPartition(self._config.topic_prefix + topic, partition)
        with self._reader() as client:
            begin, end = client.beginning_offsets([tp])[tp], client.end_offsets([tp])[tp]
            for offset in (first, last + 1):
                if not begin <= offset <= end:
                    raise OffsetOutOfRange(partition, offset, begin, end)
            client.assign([tp])
            client.seek(tp, first)
            heard_s = time.monotonic()
            while client.position(tp) <= last:
                for record in client.poll(timeout_ms=500, max_records=1000).get(tp, []):
                    heard_s = time.monotonic()
                    if record.offset <= last:
                        yield _message(topic, record)
                if time.monotonic() - heard_s > _READ_IDLE_S:
                    raise BusUnavailable(f"kafka: no record of {tp} for {_READ_IDLE_S:.0f} s")

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        name = self._config.topic_prefix + topic
        with self._reader() as client:
            partitions = client.partitions_for_topic(name)
            if not partitions:
                raise BusUnavailable(f"kafka: topic {name} does not exist")
            tps = [TopicPartition(name, p) for p in sorted(partitions)]
            first, following = client.beginning_offsets(tps), client.end_offsets(tps)
            return {tp.partition: (first[tp], following[tp]) for tp in tps}

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Any]:
        """A consumer outside of every group."""
        client = None
        try:
            client = kafka.KafkaConsumer(
                **self._settings,
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="none",
                fetch_max_bytes=16 * 1024 * 1024,
            )
            yield client
        except errors.KafkaError as error:
            raise BusUnavailable(f"kafka: {type(error).__name__}: {error}") from error
        finally:
            if client is not None:
                with contextlib.suppress(errors.KafkaError):
                    client.close(autocommit=False, timeout_ms=_CALL_MS)

    def forgets(self, topic: str) -> str:
        name = self._config.topic_prefix + topic
        try:
            found = _describe(self._settings, name, list(_KEEPS))
        except errors.KafkaError as error:
            raise BusUnavailable(f"kafka: {type(error).__name__}: {error}") from error
        return ", ".join(f"{k}={v}" for k, v in found.items() if v != _KEEPS[k])

    def ensure_topics(self) -> None:
        if not self._config.create_topics:
            return
        replicas = self._config.replication
        options = {
            "num_partitions": self._config.partitions,
            "replication_factor": replicas,
            "configs": {
                "retention.ms": "-1",  # the log is one of the two sources of a rebuild
                "message.timestamp.type": "LogAppendTime",
                "min.insync.replicas": str(max(1, replicas - 1)),
                "unclean.leader.election.enable": "false",
            },
        }
        admin = None
        try:
            admin = _admin(self._settings)
            name = self._config.topic_prefix + TOPIC
            # Asked of any broker: a role starts although the controller cannot make topics now.
            if name not in admin.list_topics():
                admin.create_topics({name: options}, wait_for_metadata=True)
        except errors.TopicAlreadyExistsError:
            pass
        except errors.KafkaError as error:
            raise BusUnavailable(f"kafka: {type(error).__name__}: {error}") from error
        finally:
            if admin is not None:
                with contextlib.suppress(errors.KafkaError):
                    admin.close()

    def close(self) -> None:
        """Producers and consumers are closed by whoever asked for them."""


def _admin(settings: dict[str, Any]) -> Any:
    known = {name: value for name, value in settings.items() if name not in _NOT_FOR_ADMIN}
    return KafkaAdminClient(**{**known, "request_timeout_ms": _CALL_MS})


def _describe(settings: dict[str, Any], topic: str, names: list[str]) -> dict[str, str]:
    """The topic's settings of these names. Raises `KafkaError`."""
    admin = _admin(settings)
    try:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(names))
        answer = admin.describe_configs([resource], config_filter="all")
    finally:
        admin.close()
    described = answer["topic"].get(topic) or {}
    if not described.keys() >= set(names):
        raise errors.UnknownTopicOrPartitionError(topic)
    return {name: str(described[name]["value"]) for name in names}


def _message(topic: str, record: Any) -> Message:
    key = (record.key or b"").decode("utf-8", "replace")
    value = record.value or b""
    return Message(topic, record.partition, record.offset, key, value, record.timestamp * 1000)
