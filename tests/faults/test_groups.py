"""Two meters of each sink in one group: members join, stand still until their partitions are
taken and wake up again, and die at named points; every event is counted once all the same.

A member that wakes up holds a batch that another one has meanwhile. The ledger's transaction is
refused by its owner epoch; ClickHouse knows the token of a plan that somebody else has finished."""

import signal

import pytest

from tests.parts.group import Group
from tests.parts.postgres import drop_database, postgres_url
from tests.parts.sqlite import migrated_url

pytest_plugins = ["tests.parts.clickhouse_fixtures"]
pytestmark = [
    pytest.mark.part("kafka"),
    pytest.mark.part("clickhouse-http"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
# Where a member of each role stands still. Within a transaction only on PostgreSQL: it has other
# writers meanwhile, and ends a transaction in which nothing happens.
ZOMBIES = {
    "sqlite": [
        ("ledger.read", "clickhouse.planned"),
        ("ledger.read", "clickhouse.acked"),
    ],
    "postgres": [
        ("ledger.read", "clickhouse.before_plan"),
        ("ledger.posted", "clickhouse.planned"),
    ],
}
CRASHES = [("ledger.posted", "clickhouse.between_tables"), ("ledger.committed", "clickhouse.acked")]
REFUSALS = ("batch_postponed", "partition_has_another_owner")


@pytest.fixture(
    params=["sqlite", pytest.param("postgres", marks=pytest.mark.part("postgres"))],
)
def group(request, tmp_path, kafka_broker, shared_front, database_name):
    if request.param == "sqlite":
        url = migrated_url(tmp_path)
    else:
        url = postgres_url()
    made = Group(tmp_path, kafka_broker.bus_config(), url, shared_front.url, database_name)
    made.zombies = ZOMBIES[request.param]
    yield made
    made.close()
    if request.param == "postgres":
        drop_database(url)


def sleeper(group, role):
    found = []

    def stands_still():
        found[:] = [each for each in group.of(role) if each.stopped]
        return bool(found)

    group.wait(stands_still, f"no {role} stands still")
    return found[0]


def wake(group, member):
    """Lets it go on once the others have its partitions, and waits until it was refused."""
    refused = sum(len(member.lines(event)) for event in REFUSALS)
    member.process.send_signal(signal.SIGCONT)
    group.wait(
        lambda: sum(len(member.lines(event)) for event in REFUSALS) > refused,
        f"{member.log.name} was not refused",
    )


def test_members_come_stand_still_and_die_and_nothing_is_counted_twice(group):
    for role in ("ledger", "clickhouse"):
        group.join(role)
        group.wait_shared(role)
    group.feed.start()
    for role in ("ledger", "clickhouse"):
        group.join(role)
        group.wait_shared(role)
    for points in group.zombies:
        for point in points:
            group.order(point, stop=True)
        asleep = []
        for role, point in zip(("ledger", "clickhouse"), points, strict=True):
            group.wait_taken(point)
            asleep.append(sleeper(group, role))
        for role in ("ledger", "clickhouse"):
            group.wait_caught_up(role)  # only the others can: all partitions are theirs
        for member in asleep:
            wake(group, member)
        for role in ("ledger", "clickhouse"):
            group.wait_shared(role)
    for points in CRASHES:
        for role, point in zip(("ledger", "clickhouse"), points, strict=True):
            group.order(point)
            group.wait_taken(point)
            group.join(role)
            group.wait_shared(role)
    group.feed.finish()
    for role in ("ledger", "clickhouse"):
        group.wait_caught_up(role)
    assert group.feed.requests > 500
    group.check()
