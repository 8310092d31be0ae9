"""Write transactions that threads share, on both engines."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, insert, select

from services.backends.sql.engine import read
from services.backends.sql.grouped import GroupedWrites
from services.backends.sql.job_tables import leader
from services.batch.typical import Typical
from tests.parts.postgres import database_url, engine  # noqa: F401

COUNT = 60


class Broken(Exception):
    pass


def add(name, broken=False):
    def fn(connection):
        connection.execute(insert(leader), {"name": name, "holder": "a", "until_at": 1})
        if broken:
            raise Broken(name)
        return name

    return fn


def names(engine):  # noqa: F811
    query = select(leader.c.name)
    return set(read(engine, lambda connection: connection.execute(query).scalars().all()))


def test_each_has_its_own_result_and_a_failure_undoes_itself_alone(engine):  # noqa: F811
    writes = GroupedWrites(engine)
    commits = []
    event.listen(engine, "commit", commits.append)
    first_in, go = threading.Event(), threading.Event()

    def slow(connection):  # while it runs, all others come
        first_in.set()
        assert go.wait(30)
        return add("slow")(connection)

    def run(number):
        try:
            return writes.write(add(f"n{number}", broken=number % 5 == 0))
        except Broken as ex:
            return ex

    with ThreadPoolExecutor(COUNT + 1) as pool:
        one = pool.submit(writes.write, slow)
        assert first_in.wait(30)
        others = [pool.submit(run, number) for number in range(COUNT)]
        while len(writes._waiting) < COUNT:
            threading.Event().wait(0.01)
        go.set()
        results = [each.result(60) for each in others]
    assert one.result() == "slow"
    failed = {n for n, result in enumerate(results) if isinstance(result, Broken)}
    assert failed == set(range(0, COUNT, 5))
    assert [r for n, r in enumerate(results) if n not in failed] == [
        f"n{n}" for n in range(COUNT) if n not in failed
    ]
    assert names(engine) == {"slow", *(f"n{n}" for n in range(COUNT) if n not in failed)}
    assert len(commits) <= 4, "sixty that came together shared few commits"


def test_an_error_of_the_database_reaches_who_caused_it(engine):  # noqa: F811
    writes = GroupedWrites(engine)
    writes.write(add("there"))
    with pytest.raises(Exception, match=r"(?i)unique"):
        writes.write(add("there"))
    assert writes.write(add("more")) == "more"
    assert names(engine) == {"there", "more"}


def test_what_is_typical_is_the_median_of_the_latest():
    typical = Typical()
    assert typical.seconds("m") is None
    for took_s in [1000] * 30 + [3, 5, 90] * 7:
        typical.note("m", took_s * 1_000_000)
    assert typical.seconds("m") == 5
    typical.note("quick", 10_000)
    assert typical.seconds("quick") == 1
