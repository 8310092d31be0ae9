"""A log that drops what a meter still needs: the meter stops with one clear line, books nothing
past the hole, and says so again at every start."""

import signal
import subprocess
import time

import pytest
from kafka.admin import KafkaAdminClient
from kafka.structs import TopicPartition

from schemas.events import TOPIC
from tests.faults.test_ledger_faults import Place, Story

pytestmark = [pytest.mark.part("kafka"), pytest.mark.part("postgres"), pytest.mark.timeout(200)]


@pytest.fixture
def place(tmp_path, kafka_broker):
    made = Place("kafka", tmp_path, kafka_broker)
    made.broker = kafka_broker
    yield made
    made.close()


def drop_all(place) -> None:
    """What retention does to a topic: its records go, whoever has not read them."""
    prefix = place.environment["TOLLGATE_BUS__TOPIC_PREFIX"]
    ends = {
        TopicPartition(prefix + TOPIC, partition): end
        for partition, (_, end) in place.bus.bounds(TOPIC).items()
    }
    admin = KafkaAdminClient(bootstrap_servers=place.broker.bootstrap)
    admin.delete_records(ends)
    admin.close()
    assert all(first == end for first, end in place.bus.bounds(TOPIC).values())


def ended(process) -> int:
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        return -1


def halts(place) -> list[str]:
    lines = place.log.read_text().splitlines()
    return [line for line in lines if "loop_failed" in line and "Halt" in line]


def test_events_dropped_while_the_ledger_was_away(place):
    story = Story(place.books, pairs=5)
    half = len(story.records) // 2
    place.send(story.records[:half])
    first = place.start()
    place.wait_until_booked()
    first.terminate()
    assert first.wait(30) == 0
    before = place.books.state()
    place.send(story.records[half:])
    drop_all(place)
    for times in (1, 2):
        assert ended(place.start()) == 1, place.log.read_text()[-2000:]
        assert len(halts(place)) == times
        assert "is deleted; the log begins at" in halts(place)[-1]
    assert place.books.state() == before
    place.books.check()


def test_events_dropped_under_a_ledger_that_is_behind(place):
    story = Story(place.books, pairs=5)
    half = len(story.records) // 2
    place.send(story.records[:half])
    slow = place.start()
    place.wait_until_booked()
    before = place.books.state()
    slow.send_signal(signal.SIGSTOP)
    place.send(story.records[half:])
    drop_all(place)
    place.send(story.records[half:])  # there is something to read behind the hole
    time.sleep(1)
    slow.send_signal(signal.SIGCONT)
    assert ended(slow) == 1, place.log.read_text()[-2000:]
    assert "no longer holds the next event" in halts(place)[-1] or "is deleted" in halts(place)[-1]
    assert place.books.state() == before
    place.books.check()
