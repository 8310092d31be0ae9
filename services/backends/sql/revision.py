"""The revision of the schema that a database has, and the one that this program was written for.

Migrations only add (docs/operate.md), so a program works on a schema that is newer than its own.
On an older one it must not start: it would write to what is not there."""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, inspect, text

from services.backends.sql.engine import read

_VERSIONS: Final = Path(__file__).parent / "migrations" / "versions"


class SchemaTooOld(Exception):
    """Migrate the database before this program is started on it."""


def known() -> list[str]:
    """The revisions that this program knows, oldest first; the last one is its own."""
    return sorted(path.stem.removeprefix("r") for path in _VERSIONS.glob("r[0-9]*.py"))


def of(engine: Engine) -> str:
    """The database's revision; empty when it was never migrated. Raises DatabaseUnavailable."""

    def fn(connection: Connection) -> str:
        if not inspect(connection).has_table("alembic_version"):
            return ""
        found = connection.execute(text("SELECT version_num FROM alembic_version"))
        return str(found.scalar_one_or_none() or "")

    return read(engine, fn)


def require(engine: Engine) -> None:
    """Raises SchemaTooOld, DatabaseUnavailable."""
    found, wanted = of(engine), known()[-1]
    if not found or found in known()[:-1]:
        raise SchemaTooOld(
            f"the database has schema {found or 'none'}, this program needs {wanted}: "
            "run `tollgate migrate` first"
        )
