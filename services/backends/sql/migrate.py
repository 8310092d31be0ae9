"""Brings a database to the present schema, with Alembic."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from services.backends.sql import revision
from services.backends.sql.engine import open_engine, write

_FOLDER: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 7_061_554_010_215_131  # any number, the same in every process


def upgrade(url: str, data_dir: Path | None = None) -> str:
    """Migrates the database of `url` to the newest revision, in one transaction, and returns it.
    One that a newer program has migrated stays as it is.

    Processes that do it at once do it one after the other. Raises DatabaseUnavailable."""
    engine = open_engine(url, data_dir or Path())
    try:
        if revision.of(engine) in ("", *revision.known()):
            write(engine, _upgrade)
        return revision.of(engine)
    finally:
        engine.dispose()


def current(url: str, data_dir: Path | None = None) -> str:
    """The database's revision; empty when it was never migrated. Raises DatabaseUnavailable."""
    engine = open_engine(url, data_dir or Path())
    try:
        return revision.of(engine)
    finally:
        engine.dispose()


def _upgrade(connection: Connection, target: str = "head") -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, target)
