"""The relay under kill -9, a bus that goes away, damaged files and records that are too large."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient

from schemas import config as schema
from schemas.events import TOPIC, decode
from services.backends.bus import kafka_producer
from services.backends.bus.kafka import KafkaBus
from services.backends.bus.port import BusUnavailable, Record
from services.backends.clock import SystemClock
from services.backends.lifecycle import die_with_parent
from services.backends.outbox import Outbox
from services.backends.sql.engine import open_engine, write
from services.backends.sql.migrate import upgrade
from services.backends.sql.outbox import SqlOutbox, audit
from services.meter.consumer import Halt
from services.meter.relay import Relay
from services.meter.relay_store import Position, RelayStore
from tests.parts.outbox_worker import request, settings, usage
from tests.parts.relay_process import (
    DATABASE,
    RelayProcess,
    events_on,
    first_copies,
    local_bus,
    open_bus,
)

ROOT = Path(__file__).parent.parent.parent
KILLED = -signal.SIGKILL
BUSES = ["local", pytest.param("kafka", marks=pytest.mark.part("kafka"))]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "outbox"
    path.mkdir()
    return path


@pytest.fixture(params=BUSES)
def bus_config(request, tmp_path):
    if request.param == "local":
        config = local_bus(tmp_path)
    else:
        config = request.getfixturevalue("kafka_broker").bus_config(partitions=3)
    open_bus(config).ensure_topics()
    return config


@pytest.fixture
def local(tmp_path):
    config = local_bus(tmp_path)
    open_bus(config).ensure_topics()
    return config


def worker(folder, name, count, *options):
    command = [sys.executable, "-m", "tests.parts.outbox_worker", folder, name, count, *options]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )


def make(folder, name="edge-1", **values) -> Outbox:
    return Outbox.create(folder, name, settings(**values), SystemClock())


def pairs(outbox, first, last, account="acct_1"):
    for n in range(first, last):
        outbox.append(request(n, account=account))
        outbox.append_last(usage(n, account=account))


def wait_until(done, limit_s=40.0):
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def is_empty(folder) -> bool:
    """All that is left is the relay's own."""
    return all(path.name.startswith("relay.") for path in folder.iterdir())


def drain(folder, config, **options):
    relay = RelayProcess(folder, config, **options)
    try:
        wait_until(lambda: is_empty(folder))
    finally:
        assert relay.stop() == 0, relay.text()


def check_all_there(config, names, per_name):
    """Every event of every incarnation, dense, and per account in the order it was written."""
    events = first_copies(events_on(config))
    for name in names:
        mine = [event for event in events if event.incarnation == name]
        assert sorted(event.seq for event in mine) == list(range(1, per_name + 1))
        for account in {event.account_id for event in mine}:
            seqs = [event.seq for event in mine if event.account_id == account]
            assert seqs == sorted(seqs)


@pytest.mark.parametrize("point", ["relay.after_send", "relay.after_mark"])
def test_kill_between_send_and_mark(folder, bus_config, point):
    outbox = make(folder)
    pairs(outbox, 0, 900)
    outbox.close()
    relay = RelayProcess(folder, bus_config, crash_at=f"{point}:2")
    assert relay.wait() == KILLED
    drain(folder, bus_config)
    repeats = len(events_on(bus_config)) - 1801
    assert repeats == (500 if point == "relay.after_send" else 0)
    check_all_there(bus_config, ["edge-1"], 1801)


def test_kills_at_any_time_lose_nothing(folder, bus_config):
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    rotate = '{"rotate_bytes": 400000}'
    names = ["edge-a", "edge-b"]
    workers = [
        worker(
            folder,
            name,
            4000,
            "--first",
            first,
            "--accounts",
            5,
            "--settings",
            rotate,
            "--rate",
            2000,
        )
        for name, first in (("edge-a", 0), ("edge-b", 10_000))
    ]
    for _ in range(4):
        relay = RelayProcess(folder, bus_config)
        time.sleep(chance.uniform(0.3, 1.5))
        relay.kill()
    assert [w.wait(60) for w in workers] == [0, 0]
    drain(folder, bus_config)
    check_all_there(bus_config, names, 8006)


def test_only_one_relay_per_folder(folder, local):
    first = RelayProcess(folder, local)
    first.wait_for("relay_started")
    second = RelayProcess(folder, local)
    assert second.wait() == 3
    assert "another relay" in second.text()
    first.kill()
    third = RelayProcess(folder, local)
    third.wait_for("relay_started")
    assert third.stop() == 0


def test_rows_that_no_fsync_covers_stay(folder, local):
    outbox = make(folder)
    pairs(outbox, 0, 10)
    outbox.sync()
    pairs(outbox, 10, 20)
    relay = RelayProcess(folder, local)
    wait_until(lambda: len(events_on(local)) >= 20)
    time.sleep(0.3)
    assert len(events_on(local)) == 20
    outbox.sync()
    wait_until(lambda: len(events_on(local)) == 40)
    assert relay.stop() == 0


def test_a_living_worker_keeps_only_what_is_not_shipped(folder, local):
    busy = worker(folder, "edge-a", 3000, "--settings", '{"rotate_bytes": 300000}', "--hang")
    relay = RelayProcess(folder, local)
    assert busy.stdout.readline() == "done 3000 0\n"
    wait_until(lambda: len(events_on(local)) == 6000)
    wait_until(lambda: len(list(folder.glob("edge-a-*.db"))) <= 3)
    busy.kill()
    busy.wait()
    assert relay.stop() == 0


@pytest.mark.parametrize("point", ["relay.after_carry", "relay.after_marks"])
def test_kill_while_removing(folder, local, point):
    outbox = make(folder, rotate_bytes=200_000)
    for n in range(300):
        outbox.append(request(n))
        outbox.sync()
    outbox.close()
    relay = RelayProcess(folder, local, crash_at=point)
    assert relay.wait() == KILLED
    assert not is_empty(folder)
    drain(folder, local)
    check_all_there(local, ["edge-1"], 301)


def flip_bit(path, needle):
    data = bytearray(path.read_bytes())
    at = data.index(needle)
    data[at + len(needle) // 2] ^= 0x04
    path.write_bytes(data)


def test_a_flipped_bit_in_a_body_stops_nothing_else(folder, local):
    damaged, sound = make(folder, "edge-a"), make(folder, "edge-b")
    for outbox, first in ((damaged, 0), (sound, 1000)):
        for n in range(first, first + 50):
            outbox.append(request(n))
        outbox.close()
    flip_bit(folder / "edge-a-000001.db", request(20).event_id.encode())
    relay = RelayProcess(folder, local)
    line = relay.wait_for("outbox_rows_damaged")
    assert line["level"] == "critical"
    wait_until(lambda: not list(folder.glob("*.lock")))
    assert relay.stop() == 0
    events = events_on(local)
    assert [e.seq for e in events if e.incarnation == "edge-b"] == list(range(1, 52))
    assert [e.seq for e in events if e.incarnation == "edge-a"] == [
        n for n in range(1, 52) if n != 21
    ]
    assert (folder / "edge-a-000001.quarantined").exists()
    store = RelayStore(folder)
    (dead,) = store.dead()
    assert (dead.incarnation, dead.seq, dead.reason) == ("edge-a", 21, "checksum")
    assert b"claude-sonnet-4-5" in dead.body


def test_a_ruined_file_stops_no_other_incarnation(folder, local):
    for name in ("edge-a", "edge-b"):
        outbox = make(folder, name)
        pairs(outbox, 0 if name == "edge-a" else 1000, 200 if name == "edge-a" else 1200)
        outbox.close()
    path = folder / "edge-a-000001.db"
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    relay = RelayProcess(folder, local)
    assert relay.wait_for("outbox_corrupt")["level"] == "critical"
    wait_until(lambda: not list(folder.glob("edge-b*")))
    assert relay.stop() == 0
    assert path.exists()
    assert len([e for e in events_on(local) if e.incarnation == "edge-b"]) == 401


def test_other_files_under_a_known_name_halt_the_relay(folder, local):
    outbox = make(folder)
    pairs(outbox, 0, 10)
    outbox.sync()
    store = RelayStore(folder)
    store.advance("edge-1", Position(3, "some-other-event"), [])
    store.close()
    relay = Relay(folder, open_bus(local), None, SystemClock(), schema.Meter())
    with pytest.raises(Halt, match="edge-1: row 3"):
        relay.run(threading.Event())


@pytest.mark.part("kafka")
def test_a_broker_that_refuses_a_record_loses_only_that_one(folder, kafka_broker):
    config = kafka_broker.bus_config(partitions=2)
    admin = KafkaAdminClient(bootstrap_servers=config.bootstrap)
    admin.create_topics(
        {
            config.topic_prefix + TOPIC: {
                "num_partitions": 2,
                "replication_factor": 1,
                "configs": {"max.message.bytes": "20000"},
            }
        },
        wait_for_metadata=True,
    )
    admin.close()
    outbox = make(folder)
    for n in range(300):
        event = request(n, account=f"acct_{n % 4}")
        if n in (100, 200):
            event.tags = {str(k): os.urandom(500).hex() for k in range(40)}
        outbox.append(event)
    outbox.close()
    drain(folder, config)
    events = first_copies(events_on(config))
    assert sorted(e.seq for e in events) == [n for n in range(1, 302) if n not in (101, 201)]
    dead = RelayStore(folder).dead()
    assert [(d.seq, d.reason) for d in dead] == [(101, "too_large"), (201, "too_large")]
    assert decode(dead[0].body).request_id == request(100).request_id


def test_the_sql_outbox_is_shipped_too(folder, local, tmp_path):
    upgrade(DATABASE, tmp_path)
    engine = open_engine(DATABASE, tmp_path)
    for n in range(20):
        write(engine, lambda c, n=n: audit(c, "key.revoke", f"key_{n}", "operator", {}))
    outbox = make(folder)
    pairs(outbox, 0, 10)
    outbox.close()
    relay = RelayProcess(folder, local, data_dir=tmp_path, crash_at="relay.sql_after_send")
    assert relay.wait() == KILLED
    drain(folder, local, data_dir=tmp_path)
    wait_until(lambda: not SqlOutbox(engine).unshipped(10))
    audits = [e for e in events_on(local) if e.source == "sql"]
    assert len(audits) == 40  # sent, killed before the mark, sent again
    assert [e.subject for e in first_copies(audits)] == [f"key_{n}" for n in range(20)]


@pytest.mark.part("kafka")
def test_kafka_away_for_a_while(folder, own_broker):
    """Longer than the stall limit, with writers that go on: files grow, memory does not, and
    afterwards everything is there, in order, a late small backlog not behind a large one."""
    config = own_broker.bus_config(partitions=3)
    open_bus(config).ensure_topics()
    rotate = '{"rotate_bytes": 2000000}'
    large = worker(
        folder, "edge-large", 8000, "--accounts", 5, "--settings", rotate, "--rate", 2000
    )
    relay = RelayProcess(folder, config)
    relay_started = time.monotonic()
    wait_until(lambda: large.poll() is not None or time.monotonic() - relay_started > 1.0)
    own_broker.kill()
    assert large.wait(60) == 0
    small = worker(folder, "edge-small", 100, "--first", 50_000)
    assert small.wait(60) == 0
    before = relay.rss_bytes()
    relay.wait_for("bus_unavailable")
    time.sleep(5)
    assert relay.process.poll() is None
    assert relay.rss_bytes() - before < 60 * 1024 * 1024
    assert not is_empty(folder)
    own_broker.start()
    wait_until(lambda: not list(folder.glob("edge-small*")), 60)
    wait_until(lambda: is_empty(folder), 60)
    assert relay.stop() == 0
    check_all_there(config, ["edge-large"], 16006)
    check_all_there(config, ["edge-small"], 202)


@pytest.mark.part("kafka")
def test_a_wedged_producer_is_replaced(own_broker, monkeypatch):
    """kafka-python 3.0.12: past its delivery timeout an idempotent producer never sends again.
    With a short one we provoke that; a new producer must go on as soon as the broker is back."""
    monkeypatch.setattr(kafka_producer, "_FOREVER_MS", 2000)
    monkeypatch.setattr(kafka_producer, "_LINGER_MS", 100)
    bus = KafkaBus(own_broker.bus_config(partitions=2), stall_s=4.0)
    bus._settings["request_timeout_ms"] = 1500
    bus.ensure_topics()
    producer = bus.producer()
    batches = [[Record(f"k{n % 9}", f"{b}-{n}".encode()) for n in range(200)] for b in range(40)]
    producer.send(TOPIC, batches[0])
    own_broker.kill()
    failures = []

    def send_rest():
        for batch in batches[1:]:
            while len(failures) < 100:
                try:
                    producer.send(TOPIC, batch)
                    break
                except BusUnavailable as error:
                    failures.append(error)
                    time.sleep(0.2)

    sender = threading.Thread(target=send_rest)
    sender.start()
    time.sleep(7)
    own_broker.start()
    sender.join(60)
    assert not sender.is_alive()
    producer.close()
    assert len(failures) >= 1
    assert 1 <= producer.rebuilds <= len(failures)
    found = [
        (message.key, message.value)
        for partition, (first, end) in bus.bounds(TOPIC).items()
        for message in bus.read(TOPIC, partition, first, end - 1)
    ]
    for key in {record.key for record in batches[0]}:
        sent = [record.value for batch in batches for record in batch if record.key == key]
        assert list(dict.fromkeys(value for k, value in found if k == key)) == sent
