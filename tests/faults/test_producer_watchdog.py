"""A broker that takes connections and answers nothing, for longer than the producer's limit: each
stuck client is replaced, none is left behind, and what was under way never exceeds one batch."""

import os
import signal
import threading
import time

import pytest

from schemas.events import TOPIC
from services.backends.bus.kafka import KafkaBus
from services.backends.bus.port import BusUnavailable, Record

pytestmark = [pytest.mark.part("kafka"), pytest.mark.timeout(240)]

STALL_S = 1.0
BATCH = 400


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def sent(bus) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for partition, (first, end) in bus.bounds(TOPIC).items():
        if end > first:
            for message in bus.read(TOPIC, partition, first, end - 1):
                found.setdefault(message.key, []).append(message.value)
    return found


def test_a_broker_that_hangs_longer_than_the_limit(own_broker):
    bus = KafkaBus(own_broker.bus_config(partitions=3), stall_s=STALL_S)
    bus.ensure_topics()
    producer = bus.producer()
    batches = [
        [Record(f"k{n % 9}", f"{b:02d}-{n:03d}".encode()) for n in range(BATCH)] for b in range(12)
    ]
    for batch in batches[:3]:
        producer.send(TOPIC, batch)
    threads, files = threading.active_count(), open_files()
    own_broker.send_signal(signal.SIGSTOP)
    try:
        failures = tries = 0
        while failures < 5:
            assert tries < 10, "the broker does not hang"
            tries += 1
            began = time.monotonic()
            try:
                producer.send(TOPIC, batches[3])  # the first one may find it not yet stopped
            except BusUnavailable:
                failures += 1
            assert time.monotonic() - began < 30, "a send has a limit of its own"
        assert producer.rebuilds == failures
        deadline = time.monotonic() + 30
        while threading.active_count() > threads + 2 or open_files() > files + 20:
            assert time.monotonic() < deadline, (threading.enumerate(), open_files())
            time.sleep(0.1)
    finally:
        own_broker.send_signal(signal.SIGCONT)
    for batch in batches[3:]:
        deadline = time.monotonic() + 60
        while True:
            try:
                producer.send(TOPIC, batch)
                break
            except BusUnavailable:
                assert time.monotonic() < deadline, "it never sends again"
                time.sleep(0.2)
    producer.close()
    found = sent(bus)
    for key in {record.key for record in batches[0]}:
        wanted = [r.value for batch in batches for r in batch if r.key == key]
        assert list(dict.fromkeys(found[key])) == wanted, "nothing is lost, the order is kept"
    repeats = sum(len(values) for values in found.values()) - len(batches) * BATCH
    assert repeats <= (tries + 3) * BATCH
