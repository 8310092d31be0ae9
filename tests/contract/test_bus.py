"""One suite for both buses: what the relay and the sinks rely on."""

import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient

from schemas import config as schema
from schemas.events import TOPIC
from services.backends.bus.kafka import KafkaBus
from services.backends.bus.local import LocalBus
from services.backends.bus.port import (
    MAX_RECORD_BYTES,
    BusUnavailable,
    OffsetOutOfRange,
    Record,
    RecordTooLarge,
)

ROOT = Path(__file__).parent.parent.parent
PARTITIONS = 3
JOIN_S = 20.0


@pytest.fixture(params=["local", pytest.param("kafka", marks=pytest.mark.part("kafka"))])
def bus(request, tmp_path):
    if request.param == "local":
        made = LocalBus(tmp_path / "bus.db", PARTITIONS)
    else:
        broker = request.getfixturevalue("kafka_broker")
        made = KafkaBus(broker.bus_config(partitions=PARTITIONS))
    made.ensure_topics()
    yield made
    made.close()


@pytest.fixture
def group():
    return f"g-{uuid.uuid4().hex[:8]}"


def records(count, keys=7, first=0):
    return [Record(f"key-{n % keys}", f"value-{n}".encode()) for n in range(first, first + count)]


def send(bus, batch):
    producer = bus.producer()
    producer.send(TOPIC, batch)
    producer.close()


class Member:
    """A consumer that keeps positions as a sink does."""

    def __init__(self, bus, group, positions=None):
        self.positions = {} if positions is None else positions
        self.assigned, self.revoked, self.got = [], [], []
        self.consumer = bus.consumer(group)
        self.consumer.subscribe(TOPIC, self._on_assigned, self._on_revoked)

    def _on_assigned(self, partitions):
        self.assigned.extend(partitions)
        return {p: self.positions.get(p, 0) for p in partitions}

    def _on_revoked(self, partitions):
        self.revoked.extend(partitions)

    def poll(self, timeout_s=0.2, max_records=1000):
        found = self.consumer.poll(timeout_s, max_records)
        for partition, messages in found.items():
            self.got.extend(messages)
            self.positions[partition] = messages[-1].offset + 1
        return found

    def poll_until(self, done, limit_s=JOIN_S):
        deadline = time.monotonic() + limit_s
        while not done():
            assert time.monotonic() < deadline, f"got {len(self.got)}, assigned {self.assigned}"
            self.poll()

    def close(self):
        self.consumer.close()


def test_every_record_once_in_order_per_key(bus, group):
    producer = bus.producer()
    sent = records(500)
    for start in range(0, 500, 100):
        producer.send(TOPIC, sent[start : start + 100])
    producer.close()
    member = Member(bus, group)
    member.poll_until(lambda: len(member.got) >= 500)
    member.close()
    assert len(member.got) == 500
    for key in {r.key for r in sent}:
        here = [m for m in member.got if m.key == key]
        assert [m.value for m in here] == [r.value for r in sent if r.key == key]
        assert len({m.partition for m in here}) == 1
    assert sorted(member.assigned) == list(range(PARTITIONS))
    assert sorted(member.revoked) == list(range(PARTITIONS))


def test_offsets_are_dense_and_bounds_tell_them(bus):
    send(bus, records(300))
    bounds = bus.bounds(TOPIC)
    assert sorted(bounds) == list(range(PARTITIONS))
    assert sum(end - first for first, end in bounds.values()) == 300
    for partition, (first, end) in bounds.items():
        found = list(bus.read(TOPIC, partition, first, end - 1))
        assert [m.offset for m in found] == list(range(first, end))
        assert all(m.topic == TOPIC and m.partition == partition for m in found)


def test_timestamps_are_the_time_of_the_append(bus):
    before = time.time_ns() // 1000
    send(bus, records(1))
    after = time.time_ns() // 1000
    found = [
        message
        for partition, (first, end) in bus.bounds(TOPIC).items()
        if end > first
        for message in bus.read(TOPIC, partition, first, end - 1)
    ]
    assert before - 2000 <= found[0].timestamp_us <= after + 2000


def test_a_range_is_read_exactly(bus):
    send(bus, records(3000, keys=1))
    partition = next(p for p, (_, end) in bus.bounds(TOPIC).items() if end == 3000)
    found = [m.offset for m in bus.read(TOPIC, partition, 700, 2500)]
    assert found == list(range(700, 2501))
    assert [m.offset for m in bus.read(TOPIC, partition, 2999, 2999)] == [2999]
    with pytest.raises(OffsetOutOfRange):
        list(bus.read(TOPIC, partition, 2990, 3000))


def test_the_owner_says_where_to_begin(bus, group):
    send(bus, records(100, keys=1))
    partition = next(p for p, (_, end) in bus.bounds(TOPIC).items() if end == 100)
    member = Member(bus, group, {partition: 60})
    member.poll_until(lambda: len(member.got) >= 40)
    member.consumer.commit({partition: 5})  # advice: it moves nobody
    member.close()
    assert [m.offset for m in member.got] == list(range(60, 100))
    again = Member(bus, group, {partition: 98})
    again.poll_until(lambda: len(again.got) >= 2)
    again.close()
    assert [m.offset for m in again.got] == [98, 99]


def test_poll_is_bounded_and_returns_at_the_timeout(bus, group):
    send(bus, records(50))
    member = Member(bus, group)
    member.poll_until(lambda: bool(member.assigned))
    while len(member.got) < 50:
        assert sum(map(len, member.poll(1.0, 7).values())) <= 7
    started = time.monotonic()
    assert member.poll(0.3) == {}
    assert 0.2 < time.monotonic() - started < 10.0
    member.close()


def test_new_records_wake_a_waiting_poll(bus, group):
    member = Member(bus, group)
    member.poll_until(lambda: bool(member.assigned))
    timer = threading.Timer(0.3, send, (bus, records(1)))
    timer.start()
    started = time.monotonic()
    member.poll_until(lambda: bool(member.got))
    timer.join()
    assert time.monotonic() - started < 15.0
    member.close()


def test_paused_partitions_wait(bus, group):
    member = Member(bus, group)
    member.poll_until(lambda: bool(member.assigned))
    member.consumer.pause(list(range(PARTITIONS)))
    send(bus, records(90))
    for _ in range(5):
        assert member.poll() == {}
    member.consumer.resume(list(range(PARTITIONS)))
    member.poll_until(lambda: len(member.got) >= 90)
    assert [m.offset for m in member.got if m.partition == 0] == list(
        range(len([m for m in member.got if m.partition == 0]))
    )
    member.close()


def test_groups_do_not_share(bus, group):
    send(bus, records(30))
    members = [Member(bus, group), Member(bus, f"{group}-other")]
    for member in members:
        member.poll_until(lambda member=member: len(member.got) >= 30)
        member.close()


def test_a_partition_has_one_owner_at_a_time(bus, group):
    """A second member joins, the first leaves: the second ends with every partition, and no
    partition was with both at once."""
    positions = {}
    first, second = Member(bus, group, positions), Member(bus, group, positions)
    first.poll_until(lambda: len(first.assigned) >= PARTITIONS)

    def owned(member):
        assigned, revoked = list(member.assigned), list(member.revoked)
        return {p for p in assigned if assigned.count(p) > revoked.count(p)}

    for _ in range(10):
        first.poll(0.1)
        second.poll(0.1)
    send(bus, records(60))
    for _ in range(10):
        first.poll(0.1)
        second.poll(0.1)
    assert not owned(first) & owned(second)
    first.close()
    second.poll_until(lambda: owned(second) == set(range(PARTITIONS)))
    send(bus, records(60, first=60))
    second.poll_until(lambda: len(first.got) + len(second.got) >= 120)
    second.close()
    seen = [(m.partition, m.offset) for m in first.got + second.got]
    assert len(set(seen)) == len(seen) == 120


def test_an_offset_beyond_the_log_halts_the_owner(bus, group):
    send(bus, records(10))
    member = Member(bus, group, {0: 1000})

    def poll_on():
        deadline = time.monotonic() + JOIN_S
        while time.monotonic() < deadline:
            member.poll()

    with pytest.raises(OffsetOutOfRange) as raised:
        poll_on()
    assert raised.value.partition == 0
    assert raised.value.offset == 1000
    member.close()


def test_a_record_that_is_too_large_is_named(bus):
    batch = records(5)
    batch[3] = Record("key", b"x" * (MAX_RECORD_BYTES + 1))
    producer = bus.producer()
    with pytest.raises(RecordTooLarge) as raised:
        producer.send(TOPIC, batch)
    assert raised.value.index == 3
    producer.send(TOPIC, [r for i, r in enumerate(batch) if i != 3])
    producer.send(TOPIC, [Record("key", b"y" * (MAX_RECORD_BYTES - 3))])
    producer.close()
    assert sum(end for _, end in bus.bounds(TOPIC).values()) == 5


def test_sending_to_a_topic_that_is_not_there_is_a_matter_of_time(bus):
    producer = bus.producer()
    with pytest.raises(BusUnavailable):
        producer.send("tollgate.unknown", records(1))
    producer.send(TOPIC, records(1))
    producer.close()


def test_making_the_topics_twice_changes_nothing(bus):
    send(bus, records(20))
    bus.ensure_topics()
    assert sum(end for _, end in bus.bounds(TOPIC).values()) == 20


def test_a_log_that_was_made_here_forgets_nothing(bus):
    assert bus.forgets(TOPIC) == ""


@pytest.mark.part("kafka")
def test_a_topic_that_drops_records_in_time_is_told(kafka_broker):
    config = kafka_broker.bus_config()
    admin = KafkaAdminClient(bootstrap_servers=config.bootstrap)
    options = {"num_partitions": 1, "replication_factor": 1, "configs": {"retention.ms": "3600000"}}
    admin.create_topics({config.topic_prefix + TOPIC: options}, wait_for_metadata=True)
    admin.close()
    assert KafkaBus(config).forgets(TOPIC) == "retention.ms=3600000"


def test_several_processes_write_one_local_log(tmp_path):
    bus = LocalBus(tmp_path / "bus.db", PARTITIONS)
    bus.ensure_topics()
    code = """
import sys; from pathlib import Path
from services.backends.bus.local import LocalBus
from services.backends.bus.port import Record
producer = LocalBus(Path(sys.argv[1]), 3).producer()
for n in range(100):
    batch = [Record(f"{sys.argv[2]}-{k}", f"{n}-{k}".encode()) for k in range(10)]
    producer.send("tollgate.events.v1", batch)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "bus.db")]
    writers = [subprocess.Popen([*command, name], cwd=ROOT) for name in "abc"]
    member = Member(bus, "g")
    member.poll_until(lambda: len(member.got) >= 3000, 60)
    assert [w.wait(20) for w in writers] == [0, 0, 0]
    member.close()
    for partition, (first, end) in bus.bounds(TOPIC).items():
        offsets = [m.offset for m in member.got if m.partition == partition]
        assert offsets == list(range(first, end))
    for key in {m.key for m in member.got}:
        numbers = [int(m.value.split(b"-")[0]) for m in member.got if m.key == key]
        assert numbers == list(range(100))


def test_a_member_that_could_not_begin_begins_later(tmp_path):
    bus = LocalBus(tmp_path / "bus.db", PARTITIONS)
    bus.ensure_topics()
    bus.producer().send(TOPIC, [Record("k", b"one")])
    member = bus.consumer("g")
    troubles = [sqlite3.OperationalError("database is locked"), BusUnavailable("not now")]

    def assigned(partitions):
        if troubles:
            raise troubles.pop()
        return dict.fromkeys(partitions, 0)

    member.subscribe(TOPIC, assigned, lambda partitions: None)
    assert member.poll(0.0, 10) == {}
    assert member.poll(0.0, 10) == {}
    (messages,) = member.poll(5.0, 10).values()
    assert [each.value for each in messages] == [b"one"]
    member.close()


def test_a_killed_member_of_a_local_group_is_replaced(tmp_path):
    bus = LocalBus(tmp_path / "bus.db", PARTITIONS)
    bus.ensure_topics()
    code = """
import sys, time; from pathlib import Path
from services.backends.bus.local import LocalBus
consumer = LocalBus(Path(sys.argv[1]), 3).consumer("g")
consumer.subscribe("tollgate.events.v1", lambda ps: {p: 0 for p in ps}, lambda ps: None)
consumer.poll(0.1, 10); print("in", flush=True); time.sleep(60)
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "bus.db")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "in\n"
    member = Member(bus, "g")
    member.poll(0.3)
    assert member.assigned == []
    holder.kill()
    holder.wait()
    member.poll_until(lambda: bool(member.assigned))
    member.close()


@pytest.mark.timeout(60)
def test_brokers_that_are_away_are_told_in_seconds():
    """A command that asks the log must not wait for ever."""
    with socket.socket() as taken:  # bound and not listened on: nobody answers there
        taken.bind(("127.0.0.1", 0))
        bus = KafkaBus(schema.Bus(kind="kafka", bootstrap=[f"127.0.0.1:{taken.getsockname()[1]}"]))
        with pytest.raises(BusUnavailable):
            bus.bounds(TOPIC)
        with pytest.raises(BusUnavailable):
            next(bus.read(TOPIC, 0, 0, 1))
        threads = threading.active_count()
        for _ in range(3):
            with pytest.raises(BusUnavailable):
                bus.ensure_topics()
        assert threading.active_count() <= threads  # those of tests before may have ended
        bus.close()
