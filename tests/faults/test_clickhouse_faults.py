"""kill -9 and outages of the ClickHouse sink: the tables hold every terminal event once."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from schemas.config import ClickHouse as ClickHouseSection
from schemas.config import Config
from schemas.events import TOPIC, encode
from services.backends.bus.port import Record
from services.backends.clickhouse.store import open_store
from services.backends.sql.engine import open_engine
from services.backends.sql.migrate import upgrade
from services.backends.sql.plans import Plans
from services.meter.clickhouse_sink import ClickHouseSink
from services.meter.consumer import Consumer
from tests.parts.clickhouse import CHDB, HTTP, ROOT, stop_merges
from tests.parts.sink_worker import DATABASE_URL, caught_up, open_bus, report
from tests.parts.terminals import START_US, AllBooked, error, request, usage

pytest_plugins = ["tests.parts.clickhouse_fixtures"]

CRASH_POINTS = (
    "clickhouse.before_plan",
    "clickhouse.planned",
    "clickhouse.between_tables",
    "clickhouse.acked",
    "clickhouse.done",
)


@pytest.fixture(params=[CHDB, HTTP])
def dsn(request):
    if request.param == "chdb":
        request.getfixturevalue("chdb_folder")  # notes the part; the engines are the workers' own
        return "chdb:///engine"
    return request.getfixturevalue("own_front").url


@pytest.fixture
def folder(tmp_path):
    upgrade(DATABASE_URL, tmp_path)
    return tmp_path


def fill(folder, numbers, *, resend=()):
    """Logs requests, usages and errors of ten accounts over two months, and some twice."""
    bus = open_bus(folder)
    producer = bus.producer()
    events = []
    for n in [*numbers, *resend]:
        fields = {
            "account_id": f"acct_{n % 10}",
            "occurred_at": START_US - (n % 3) * 40 * 86_400_000_000 + n,
        }
        events += [request(n, **fields), (error if n % 5 == 0 else usage)(n, **fields)]
    producer.send(TOPIC, [Record(e.account_id, encode(e)) for e in events])
    producer.close()
    return {
        "unique": len(set(numbers)),
        "stored_attempts": sum(1 for n in set(numbers) if n % 5),
        "cost_nano": sum((n + 1) * 1000 for n in set(numbers) if n % 5),
    }


def work(folder, dsn, *, crash_at="", batch=25):
    """Runs the worker to its end; its report, or None when it killed itself."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.parts.sink_worker", str(folder), dsn, str(batch)],
        cwd=ROOT,
        env={**os.environ, "TOLLGATE_CRASH_AT": crash_at},
        capture_output=True,
        text=True,
        timeout=90,
    )
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_exact(found, truth):
    assert {name: found[name] for name in truth} == truth
    # Not even hidden copies: what the tokens and the look-up alone let in.
    assert found["stored"] == found["unique"]


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_at_each_step_and_started_again(folder, dsn, point):
    truth = fill(folder, range(120), resend=range(30, 60))
    assert work(folder, dsn, crash_at=f"{point}:3") is None
    # Between the death and the next start the log goes on, so a batch cut anew would differ.
    more = fill(folder, range(120, 150))
    found = work(folder, dsn, batch=40)
    assert_exact(found, {name: truth[name] + more[name] for name in truth})


@pytest.mark.slow
def test_killed_at_random_moments(folder, dsn):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    truth = fill(folder, range(3000), resend=rng.sample(range(3000), 300))
    killed = 0
    for _ in range(6):
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.parts.sink_worker", str(folder), dsn, "100"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(1.2, 2.2))
        worker.kill()
        killed += worker.wait() == -signal.SIGKILL
    assert_exact(work(folder, dsn, batch=500), truth)
    assert killed > 0


@pytest.mark.part("clickhouse-http")
def test_clickhouse_down_and_back_again(folder, own_front):
    truth = fill(folder, range(100))
    bus = open_bus(folder)
    plans = Plans(open_engine(DATABASE_URL, folder))
    config = Config(data_dir=str(folder), clickhouse=ClickHouseSection(dsn=own_front.url))
    store = open_store(config)
    stop_merges(store.clickhouse)
    own_front.kill()
    consumer = Consumer(bus, ClickHouseSink(store, plans, bus, AllBooked()), batch=50, wait_s=0.01)
    stop = threading.Event()
    thread = threading.Thread(target=consumer.run, args=(stop,))
    thread.start()
    try:
        time.sleep(1.0)
        assert set(plans.positions(TOPIC).values()) == {0}
        own_front.start()
        wait_until(lambda: caught_up(bus, plans))
        assert_exact(report(store), truth)
        own_front.kill()
        more = fill(folder, range(100, 300))
        before = plans.positions(TOPIC)
        time.sleep(1.0)
        assert thread.is_alive()
        assert plans.positions(TOPIC) == before
        own_front.start()
        wait_until(lambda: caught_up(bus, plans))
        assert_exact(report(store), {name: truth[name] + more[name] for name in truth})
    finally:
        stop.set()
        thread.join(20)
        store.close()


def wait_until(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
