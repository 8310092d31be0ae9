"""Three Kafka nodes, every event on two of them before it counts: leaders are killed under traffic,
nodes restart, a majority hangs; nothing is lost and nothing is counted twice."""

import random
import signal
import time
import uuid

import pytest

from schemas.events import TOPIC
from services.backends.bus.kafka import KafkaBus
from services.backends.clock import SystemClock
from services.backends.outbox import Outbox
from tests.parts.fault_stack import FaultStack
from tests.parts.outbox_worker import request, settings, usage
from tests.parts.postgres import postgres_url
from tests.parts.relay_process import RelayProcess, events_on, first_copies
from tests.parts.traffic import PATIENT, Clients

pytestmark = [pytest.mark.part("kafka"), pytest.mark.timeout(400)]


@pytest.fixture
def program(tmp_path_factory, kafka_cluster):
    sections = {
        "edge": PATIENT,
        "bus": {
            "kind": "kafka",
            "bootstrap": kafka_cluster.bootstrap,
            "replication": 3,
            "topic_prefix": f"three{uuid.uuid4().hex[:6]}-",
        },
        "database": {"url": postgres_url(migrated=False)},
    }
    stack = FaultStack(tmp_path_factory.mktemp("three"), sections)
    stack.topic = sections["bus"]["topic_prefix"] + TOPIC
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def busiest_leader(cluster, topic) -> int:
    leaders = list(cluster.leaders(topic).values())
    return max(set(leaders), key=leaders.count)


def wait_led_by_others(cluster, topic, node):
    deadline = time.monotonic() + 60
    while {node, -1} & set(cluster.leaders(topic).values()):
        assert time.monotonic() < deadline, cluster.leaders(topic)
        time.sleep(0.2)


@pytest.mark.part("postgres")
def test_a_killed_leader_loses_nothing(kafka_cluster, program):
    """kill -9 of the node that leads most, its return, then a restart of another one."""
    kafka_cluster.wait_in_sync(program.topic)
    clients = Clients(program, program.new_key())
    with clients.asking():
        clients.wait_served(20)
        first = busiest_leader(kafka_cluster, program.topic)
        kafka_cluster.nodes[first].kill()
        wait_led_by_others(kafka_cluster, program.topic, first)
        clients.wait_served(30)
        kafka_cluster.start()
        kafka_cluster.wait_in_sync(program.topic)
        second = busiest_leader(kafka_cluster, program.topic)
        assert second != first
        kafka_cluster.nodes[second].stop()
        wait_led_by_others(kafka_cluster, program.topic, second)
        clients.wait_served(30)
        kafka_cluster.start()
        clients.wait_served(10)
    clients.check_billed_once()


def test_without_a_majority_the_relay_waits(tmp_path, kafka_cluster):
    """Two of three nodes hang: no write can be acknowledged; afterwards each event is there, and
    each account's in order."""
    config = kafka_cluster.bus_config(partitions=3)
    bus = KafkaBus(config)
    bus.ensure_topics()
    kafka_cluster.wait_in_sync(config.topic_prefix + TOPIC)
    folder = tmp_path / "outbox"
    outbox = Outbox.create(folder, "edge-1", settings(), SystemClock())

    def pairs(first, last):
        for n in range(first, last):
            outbox.append(request(n, account=f"acct_{n % 7}"))
            outbox.append_last(usage(n, account=f"acct_{n % 7}"))
        outbox.sync()

    relay = RelayProcess(folder, config)
    pairs(0, 500)
    hung = random.sample(sorted(kafka_cluster.nodes), 2)
    for node in hung:
        kafka_cluster.nodes[node].send_signal(signal.SIGSTOP)
    try:
        pairs(500, 2000)
        relay.wait_for("bus_unavailable", 60)
    finally:
        for node in hung:
            kafka_cluster.nodes[node].send_signal(signal.SIGCONT)
    outbox.close()
    deadline = time.monotonic() + 90
    while any(not path.name.startswith("relay.") for path in folder.iterdir()):
        assert time.monotonic() < deadline, relay.text()[-3000:]
        time.sleep(0.1)
    assert relay.stop() == 0
    events = first_copies(events_on(config))
    assert sorted(event.seq for event in events) == list(range(1, 4002))
    for account in {event.account_id for event in events}:
        seqs = [event.seq for event in events if event.account_id == account]
        assert seqs == sorted(seqs)
