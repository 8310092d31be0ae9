"""The bus on Kafka 3.x and 4.x brokers, with kafka-python 3.

Measured on 3.0.12: the default reconnect pause grows to 30 s; without the C package `crc32c`
sending and reading are four to eight times slower; an answer about the cluster that was asked for
before a topic was wanted, and comes after, ends the wish: a member that joins then has no
partitions until the next answer, by default for five minutes.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any, Final

import crc32c
import kafka
from kafka import errors
from kafka.structs import TopicPartition

from schemas import config as schema
from schemas.events import TOPIC
from services.backends.bus.kafka_consumer import KafkaConsumer, message_of
from services.backends.bus.kafka_producer import KafkaProducer
from services.backends.bus.kafka_topics import (
    CALL_MS,
    FETCH_MAX_BYTES,
    admin_client,
    describe,
    require_broker,
)
from services.backends.bus.port import BusUnavailable, Message, OffsetOutOfRange

METADATA_MS: Final = 5_000
STALL_S: Final = 6.0  # no acknowledgement for this long: the producer is replaced
_READ_IDLE_S: Final = 30.0
# What a topic is like that keeps all its records.
_KEEPS: Final = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}

assert crc32c.crc32c(b"123456789") == 0xE3069283
# The client logs every failed connection at level ERROR; what matters reaches the callers.
logging.getLogger("kafka").setLevel(logging.CRITICAL)


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
            "bootstrap_timeout_ms": CALL_MS,
            "metadata_max_age_ms": METADATA_MS,
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
                        yield message_of(topic, record)
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
            require_broker(self._config.bootstrap)
            client = kafka.KafkaConsumer(
                **self._settings,
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="none",
                fetch_max_bytes=FETCH_MAX_BYTES,
            )
            yield client
        except errors.KafkaError as error:
            raise BusUnavailable(f"kafka: {type(error).__name__}: {error}") from error
        finally:
            if client is not None:
                with contextlib.suppress(errors.KafkaError):
                    client.close(autocommit=False, timeout_ms=CALL_MS)

    def forgets(self, topic: str) -> str:
        name = self._config.topic_prefix + topic
        try:
            found = describe(self._settings, name, list(_KEEPS))
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
            require_broker(self._config.bootstrap)
            admin = admin_client(self._settings)
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
