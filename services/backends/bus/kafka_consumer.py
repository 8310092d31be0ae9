"""Reading on Kafka: a member of a group, made anew after every error."""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import kafka
from kafka import errors
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.structs import OffsetAndMetadata, TopicPartition

from services.backends.bus.kafka_topics import CALL_MS, FETCH_MAX_BYTES
from services.backends.bus.port import Message, OffsetOutOfRange
from services.backends.telemetry import get_logger

_SESSION_MS: Final = 6_000  # the least that a broker takes unless configured otherwise
_REJOIN_MS: Final = 60_000  # so long others wait for a member that lives but does not come back
_RETRY_S: Final = 0.5
_WHOLE: Final = 1_000_000  # records: more than an answer of `FETCH_MAX_BYTES` holds


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
                ready.extend(message_of(self._topic, record) for record in records)

    def _join(self) -> None:
        self._client = kafka.KafkaConsumer(
            **self._settings,
            group_id=self._prefix + self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            session_timeout_ms=_SESSION_MS,
            heartbeat_interval_ms=_SESSION_MS // 4,
            max_poll_interval_ms=_REJOIN_MS,
            fetch_max_bytes=FETCH_MAX_BYTES,
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
                client.close(autocommit=False, timeout_ms=CALL_MS)
        self._revoke(sorted(self._owned))

    def close(self) -> None:
        self._revoke(sorted(self._owned))
        self._leave()


def message_of(topic: str, record: Any) -> Message:
    """What the client gives, in the words of the port."""
    key = (record.key or b"").decode("utf-8", "replace")
    value = record.value or b""
    return Message(topic, record.partition, record.offset, key, value, record.timestamp * 1000)
