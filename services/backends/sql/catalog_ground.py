"""What every part of the catalog does: lock it, require what a change names, tell it."""

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Column, Connection, Engine, Table, exc, func, select

from services.backends.sql.engine import write
from services.backends.sql.tables import catalog_version

T = TypeVar("T")

OPERATOR: Final = "operator"
_texts: Final = msgspec.json.Decoder(tuple[str, ...])


class NotInCatalog(LookupError):
    """There is no such account, member, key, group or price version."""


class AlreadyInCatalog(Exception):
    """The account's or member's name or the key's secret is taken."""


def lock(connection: Connection) -> None:
    """Changes that depend on several rows come one after the other."""
    connection.execute(select(catalog_version.c.version).with_for_update())


def require(connection: Connection, column: Column[str], value: str, word: str) -> None:
    if connection.execute(select(column).where(column == value)).first() is None:
        raise NotInCatalog(f"there is no {word} {value!r}")


def create(engine: Engine, fn: Callable[[Connection], T], taken: str) -> T:
    """`fn` in one write transaction. Raises AlreadyInCatalog(taken)."""
    try:
        return write(engine, fn)
    except exc.IntegrityError as ex:
        raise AlreadyInCatalog(taken) from ex


def page_of_ids(
    connection: Connection, table: Table, conditions: Iterable[Any], limit: int, offset: int
) -> tuple[list[str], int]:
    """The ids of one page, oldest first, and how many there are in all."""
    chosen = select(table.c.id).where(*conditions)
    total = connection.execute(select(func.count()).select_from(chosen.subquery())).scalar_one()
    ordered = chosen.order_by(table.c.created_at, table.c.id).limit(limit).offset(offset)
    return list(connection.execute(ordered).scalars()), int(total)


def as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def as_tuple(text: str) -> tuple[str, ...]:
    return () if text == "[]" else _texts.decode(text)


def facts(values: dict[str, Any]) -> dict[str, str]:
    """What an audit event tells of a change: everything that says something."""
    return {
        name: value if isinstance(value, str) else as_json(value)
        for name, value in values.items()
        if value not in (None, 0, "", (), [])
    }
