"""ClickHouse for tests: chDB in this process, and its HTTP interface over chDB in another.

This process can hold one chDB folder, so its tests share a folder and have a database each. A test
file takes the fixtures with `pytest_plugins = ["tests.parts.clickhouse_fixtures"]`."""

import itertools

import pytest

from tests.conftest import PARTS, part_missing
from tests.parts.clickhouse import CHDB, HTTP, HttpFront, open_database

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def chdb_folder(tmp_path_factory):
    try:
        import chdb
    except ImportError as ex:
        part_missing("chdb", str(ex))
    PARTS["chdb"] = chdb.engine_version
    return tmp_path_factory.mktemp("chdb")


@pytest.fixture(scope="session")
def shared_front(tmp_path_factory):
    front = HttpFront(tmp_path_factory.mktemp("front") / "engine")
    try:
        front.start()
    except RuntimeError as ex:
        part_missing("clickhouse-http", str(ex))
    PARTS["clickhouse-http"] = front.version
    yield front
    front.kill()


@pytest.fixture
def own_front(tmp_path):
    """A front of the test's own, to be killed and started again."""
    front = HttpFront(tmp_path / "engine")
    try:
        front.start()
    except RuntimeError as ex:
        part_missing("clickhouse-http", str(ex))
    PARTS["clickhouse-http"] = front.version
    yield front
    front.kill()


@pytest.fixture
def database_name():
    return f"t{next(_numbers)}"


@pytest.fixture(params=[CHDB, HTTP])
def clickhouse(request, database_name):
    """An empty database, once on chDB and once through HTTP."""
    opened = open_database(request, database_name)
    yield opened
    opened.close()
