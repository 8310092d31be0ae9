"""Many rows as one parameter: a statement over a batch is one round trip on either engine."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    Connection,
    FromClause,
    Select,
    Table,
    Text,
    bindparam,
    column,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine


def rows_as_table(
    connection: Connection,
    name: str,
    columns: Mapping[str, TypeEngine[Any]],
    rows: Sequence[Sequence[Any]],
) -> FromClause:
    """`rows` (integers, texts, None) as a table `name` with `columns`, plus `place` from 1."""
    if connection.dialect.name == "postgresql":
        arrays = [
            bindparam(None, [row[at] for row in rows], type_=ARRAY(kind))
            for at, kind in enumerate(columns.values())
        ]
        listed = [column(column_name, kind) for column_name, kind in columns.items()]
        return (
            func.unnest(*arrays)
            .table_valued(*listed, with_ordinality="place", name=name)
            .render_derived()
        )
    each = func.json_each(bindparam(None, msgspec.json.encode(rows).decode())).table_valued(
        "key", "value", name=f"{name}_json"
    )
    cells = [
        func.json_extract(each.c.value, f"$[{at}]", type_=kind).label(column_name)
        for at, (column_name, kind) in enumerate(columns.items())
    ]
    return select(*cells, (each.c.key + 1).label("place")).subquery(name)


def among(connection: Connection, ids: Iterable[str]) -> Select[Any]:
    """For `column.in_(...)` with any number of ids: a list of parameters has a largest length."""
    rows = rows_as_table(connection, "named", {"id": Text()}, [[each] for each in ids])
    return select(rows.c.id)


def ids_table(dialect: str) -> FromClause:
    """One column `id` out of the parameter `ids`, which `ids_value` makes: for statements that
    are built once."""
    if dialect == "postgresql":
        ids = bindparam("ids", type_=ARRAY(Text()))
        return func.unnest(ids).table_valued(column("id", Text()), name="named").render_derived()
    each = func.json_each(bindparam("ids", type_=Text())).table_valued(
        column("value", Text()), name="named_json"
    )
    return select(each.c.value.label("id")).subquery("named")


def ids_value(dialect: str, ids: Iterable[str]) -> list[str] | str:
    listed = list(ids)
    return listed if dialect == "postgresql" else msgspec.json.encode(listed).decode()


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can be given an ON CONFLICT clause."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def insert_new(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that leaves out rows whose primary or unique key is there already."""
    return insert_into(connection, table).on_conflict_do_nothing()
