"""Migrated SQLite databases: one is migrated, the others are copies of it, which costs far less."""

import functools
import shutil
import tempfile
from pathlib import Path

from services.backends.sql import migrate

NAME = "tollgate.db"


def sqlite_url(folder: Path, name: str = NAME) -> str:
    return f"sqlite:///{folder / name}"


def migrated_url(folder: Path, name: str = NAME) -> str:
    """The URL of a new database in `folder`, with every table and no row."""
    shutil.copy(_template(), folder / name)
    return sqlite_url(folder, name)


@functools.cache
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tollgate-template-"))
    migrate.upgrade(sqlite_url(folder))  # closes it, so that nothing is left in a log beside it
    assert [path.name for path in folder.iterdir()] == [NAME]
    return folder / NAME
