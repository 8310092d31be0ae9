"""The poll loop that both sinks share: claim partitions, gather batches, hand them over in order.

The sink's own store is the only truth about positions: the loop seeks where `claim` says, and
what it commits to the bus is advice for people who look at lag. A sink that cannot work now is
asked again with a growing pause while the bus is still polled, so that the member stays in its
group and no position moves.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from schemas.events import TOPIC
from services.backends.bus.port import Bus, BusUnavailable, Message, OffsetOutOfRange
from services.backends.bus.port import Consumer as Member
from services.backends.telemetry import get_logger, metric
from services.meter.dead import event_id_of

_BACKOFF_FIRST_S: Final = 0.05
_BACKOFF_MAX_S: Final = 2.0
_IDLE_POLL_S: Final = 0.5
_REJOIN_S: Final = 0.5
_COMMIT_EVERY_S: Final = 1.0
_SHOW_EVERY_S: Final = 1.0


class Halt(Exception):
    """Going on could lose or double an event: a person must look. The process exits with 1."""


class TryLater(Exception):
    """The sink's store cannot answer now; nothing was stored, or it is unknown whether it was.
    The same messages are handed over again."""


class NotOwner(Exception):
    """Another member claimed the partition after us: we leave the group and join it anew."""


class Position(NamedTuple):
    """Where a sink goes on: the next offset, and the event_id stored for the one before
    (empty when nothing was stored yet)."""

    next_offset: int
    last_event_id: str


class Sink(Protocol):
    """What stores the events. `handle` is all or nothing and may be called again with messages
    that it stored already; it raises TryLater, NotOwner or Halt, and nothing else is survived."""

    group: str

    def claim(self, partition: int) -> Position: ...

    def handle(self, partition: int, messages: list[Message]) -> None: ...

    def release(self, partition: int) -> None: ...


class _Buffer:
    """Messages of one partition that wait for their batch."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.verify: Position | None = None  # the next message must be the one before it
        self.since_s = 0.0
        self.failures = 0
        self.retry_at_s = 0.0


class Consumer:
    """Runs one sink over one topic. `batch` bounds the messages of one `handle`, `wait_s` the time
    the first of them waits for company; `beat` is called at every turn of the loop."""

    def __init__(
        self,
        bus: Bus,
        sink: Sink,
        *,
        batch: int,
        wait_s: float,
        topic: str = TOPIC,
        beat: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._sink = sink
        self._batch = batch
        self._wait_s = wait_s
        self._topic = topic
        self._beat = beat
        self._now_s = monotonic
        self._owned: dict[int, _Buffer] = {}
        self._contested = False
        self._advice: dict[int, int] = {}
        self._advised_at_s = 0.0
        self._shown_at_s = 0.0
        self._stop = threading.Event()
        self._log = get_logger().bind(sink=sink.group)

    def run(self, stop: threading.Event) -> None:
        """Consumes until `stop`. Raises Halt."""
        self._stop = stop
        while not stop.is_set():
            self._be_member(stop)
            if self._contested:
                stop.wait(_REJOIN_S)

    def _be_member(self, stop: threading.Event) -> None:
        """Until `stop`, or until a partition that the group gave us has another owner. That one may
        have claimed it late, for an assignment that was over, and be gone: only a new assignment
        says whose the partition is, and whoever gets it claims it anew."""
        self._contested = False
        member = self._bus.consumer(self._sink.group)
        try:
            member.subscribe(self._topic, self._assigned, self._revoked)
            while not stop.is_set() and not self._contested:
                self._beat()
                self._take(member.poll(self._poll_s(), self._batch))
                self._hand_over()
                self._balance(member)
                self._advise(member)
                self._show()
        except OffsetOutOfRange as ex:
            raise Halt(
                f"{self._sink.group}: the log no longer holds the next event of a partition: {ex}"
            ) from ex
        finally:
            for partition in list(self._owned):
                self._drop(partition)
            member.close()

    # -- ownership ---------------------------------------------------------------------------

    def _assigned(self, partitions: list[int]) -> dict[int, int]:
        """Where to read from: one event before the position, when there is one, to see that the
        log is still the one that the position was stored for."""
        metric("tollgate_rebalances_total").labels(self._sink.group).inc()
        offsets: dict[int, int] = {}
        failures = 0
        while len(offsets) < len(partitions) and not self._stop.is_set():
            try:
                bounds = self._bus.bounds(self._topic)
                for partition in partitions:
                    if partition not in offsets:
                        position = self._sink.claim(partition)
                        offsets[partition] = self._own(partition, position, bounds[partition])
            except (TryLater, BusUnavailable) as ex:
                failures += 1
                self._log.warning("claim_postponed", failures=failures, error=str(ex))
                self._stop.wait(_backoff_s(failures))
        self._log.info("partitions_assigned", offsets=offsets)
        return offsets

    def _own(self, partition: int, position: Position, bounds: tuple[int, int]) -> int:
        first, end = bounds
        at = f"{self._sink.group}: {self._topic}/{partition}"
        if position.next_offset > end:
            raise Halt(
                f"{at}: the books are at offset {position.next_offset}, the log ends at {end}: "
                "it was truncated or made anew"
            )
        if position.next_offset < first:
            raise Halt(
                f"{at}: the next event, offset {position.next_offset}, is deleted; the log begins "
                f"at {first}"
            )
        buffer = self._owned[partition] = _Buffer()
        if position.last_event_id and position.next_offset > first:
            buffer.verify = position
            return position.next_offset - 1
        return position.next_offset

    def _verified(self, messages: list[Message], position: Position) -> list[Message]:
        """The messages from the position on. Raises Halt."""
        head = messages[0]
        found = event_id_of(head.value)
        if head.offset != position.next_offset - 1 or found != position.last_event_id:
            raise Halt(
                f"{self._sink.group}: {self._topic}/{head.partition}: offset {head.offset} holds "
                f"event {found}, the books stored {position.last_event_id} at "
                f"{position.next_offset - 1}: this is another log"
            )
        return messages[1:]

    def _revoked(self, partitions: list[int]) -> None:
        for partition in partitions:
            self._drop(partition)
        self._log.info("partitions_revoked", partitions=partitions)

    def _drop(self, partition: int) -> None:
        if self._owned.pop(partition, None) is not None:
            self._advice.pop(partition, None)
            self._lag_seconds(partition).set(0)
            self._sink.release(partition)

    # -- messages ----------------------------------------------------------------------------

    def _take(self, polled: dict[int, list[Message]]) -> None:
        for partition, messages in polled.items():
            buffer = self._owned.get(partition)
            if buffer is None or not messages:
                continue
            if buffer.verify is not None:
                messages = self._verified(messages, buffer.verify)
                buffer.verify = None
            if not buffer.messages:
                buffer.since_s = self._now_s()
            buffer.messages.extend(messages)

    def _poll_s(self) -> float:
        """Until the first buffer is due, at most the idle time."""
        now_s = self._now_s()
        due_s = now_s + _IDLE_POLL_S
        for buffer in self._owned.values():
            if buffer.messages:
                due_s = min(due_s, self._due_s(buffer))
        return max(0.0, due_s - now_s)

    def _due_s(self, buffer: _Buffer) -> float:
        full = len(buffer.messages) >= self._batch
        return max(buffer.retry_at_s, 0.0 if full else buffer.since_s + self._wait_s)

    def _hand_over(self) -> None:
        """One batch of every partition that is due, the longest waiting first."""
        due = [(b.since_s, p) for p, b in self._owned.items() if b.messages]
        for _, partition in sorted(due):
            buffer = self._owned[partition]
            if self._stop.is_set() or self._due_s(buffer) > self._now_s():
                continue
            batch = buffer.messages[: self._batch]
            if not buffer.failures:
                self._stage("fill", self._now_s() - buffer.since_s)
            try:
                self._sink.handle(partition, batch)
            except TryLater as ex:
                buffer.failures += 1
                metric("tollgate_commit_failed_total").labels(self._sink.group).inc()
                buffer.retry_at_s = self._now_s() + _backoff_s(buffer.failures)
                self._log.warning(
                    "batch_postponed", partition=partition, failures=buffer.failures, error=str(ex)
                )
                return  # such a wait may be long: poll before the next partition meets it too
            except NotOwner as ex:
                metric("tollgate_zombie_refused_total").labels(self._sink.group).inc()
                self._log.warning("partition_has_another_owner", partition=partition, why=str(ex))
                self._contested = True
                return
            metric("tollgate_batch_rows").labels(self._sink.group).observe(len(batch))
            del buffer.messages[: len(batch)]
            buffer.since_s = self._now_s()
            buffer.failures, buffer.retry_at_s = 0, 0.0
            self._advice[partition] = batch[-1].offset + 1

    def _balance(self, member: Member) -> None:
        """Takes no more of a partition whose buffer is full; bounds the memory."""
        full = [p for p, b in self._owned.items() if b.failures or len(b.messages) >= self._batch]
        member.pause(full)
        member.resume([p for p in self._owned if p not in full])

    def _advise(self, member: Member) -> None:
        if self._advice and self._now_s() - self._advised_at_s >= _COMMIT_EVERY_S:
            self._advised_at_s = self._now_s()
            advice, self._advice = self._advice, {}
            member.commit(advice)

    # -- figures -----------------------------------------------------------------------------

    def _show(self) -> None:
        if self._now_s() - self._shown_at_s < _SHOW_EVERY_S:
            return
        self._shown_at_s = self._now_s()
        failing = sum(1 for buffer in self._owned.values() if buffer.failures)
        full = sum(1 for b in self._owned.values() if len(b.messages) >= self._batch)
        paused = metric("tollgate_paused")
        paused.labels(self._sink.group, "failing").set(failing)
        paused.labels(self._sink.group, "full").set(full)
        now_us = time.time() * 1e6
        for partition, buffer in self._owned.items():
            lag_us = now_us - buffer.messages[0].timestamp_us if buffer.messages else 0
            self._lag_seconds(partition).set(max(0.0, lag_us / 1e6))

    def _lag_seconds(self, partition: int) -> Any:
        return metric("tollgate_consumer_lag_seconds").labels(self._sink.group, str(partition))

    def _stage(self, stage: str, seconds: float) -> None:
        metric("tollgate_batch_seconds").labels(self._sink.group, stage).observe(seconds)


def _backoff_s(failures: int) -> float:
    return float(min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2 ** min(failures, 10)))
