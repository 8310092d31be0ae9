"""Channels and groups: from the configuration into the database, and out of it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, Table, delete, insert, select, update

from schemas import config
from services.backends.settings import resolve_secret
from services.backends.sql.outbox import audit
from services.backends.sql.sealing import Sealer, WrongSecret
from services.backends.sql.tables import api_key, channel, routing_group
from services.core.catalog import Channel, Group
from services.core.prices import PPM
from services.core.routing import ModelIndex

_PLAIN: Final = (  # columns that are the configuration's values as they are
    "dialect",
    "provider",
    "base_url",
    "priority",
    "weight",
    "max_concurrency",
    "connect_timeout_s",
    "first_byte_timeout_s",
    "total_timeout_s",
    "idle_timeout_s",
    "count_tokens",
)


def sync_groups(
    connection: Connection, groups: Sequence[config.Group], needed: Collection[str], actor: str
) -> bool:
    """Makes the groups what the configuration says, `needed` ones with multiplier 1 when it does
    not name them. A group that a key still has stays as it was. True: something changed."""
    wanted = {name: {"multiplier_ppm": PPM, "models": "[]"} for name in needed}
    for group in groups:
        wanted[group.name] = {
            "multiplier_ppm": round(group.multiplier * PPM),
            "models": _json(group.models),
        }
    used = set(connection.execute(select(api_key.c.group_name).distinct()).scalars())
    present = {row.name: row for row in connection.execute(select(routing_group))}
    changes = _changes(present, wanted, keep=used)
    return _write(connection, routing_group, "group", changes, wanted, actor)


def sync_channels(
    connection: Connection, channels: Sequence[config.Channel], sealer: Sealer, actor: str
) -> bool:
    """Makes the channels exactly the configuration's; one that it does not name is removed. True:
    something changed. Raises ConfigError when a secret is not there."""
    present = {row.name: row for row in connection.execute(select(channel))}
    wanted: dict[str, dict[str, Any]] = {}
    for each in channels:
        models = each.models if isinstance(each.models, dict) else {m: m for m in each.models}
        values = {name: getattr(each, name) for name in _PLAIN}
        values |= {"models": _json(models), "groups": _json(each.groups)}
        # Sealing gives other text each time: what is equal in clear keeps the text that it has.
        clear = resolve_secret(each.credential)
        sealed = _sealed(present.get(each.name), clear, sealer)
        wanted[each.name] = values | {"credential_sealed": sealed or sealer.seal(clear)}
    changes = _changes(present, wanted)
    return _write(connection, channel, "channel", changes, wanted, actor)


def read_groups(connection: Connection, index: ModelIndex) -> dict[str, Group]:
    """The groups by name, their models by canonical id."""
    return {
        row.name: Group(
            name=row.name,
            multiplier_ppm=row.multiplier_ppm,
            models=tuple(
                _canonical(index, name) for name in msgspec.json.decode(row.models, type=list[str])
            ),
        )
        for row in connection.execute(select(routing_group))
    }


def read_channels(connection: Connection, sealer: Sealer, index: ModelIndex) -> tuple[Channel, ...]:
    """The channels, with credentials in clear text. Raises WrongSecret."""
    found = []
    for row in connection.execute(select(channel).order_by(channel.c.name)):
        models: dict[str, str] = {}
        for name, upstream in msgspec.json.decode(row.models, type=dict[str, str]).items():
            models.setdefault(_canonical(index, name), upstream)
        found.append(
            Channel(
                name=row.name,
                credential=sealer.unseal(row.credential_sealed),
                models=models,
                groups=msgspec.json.decode(row.groups, type=tuple[str, ...]),
                **{name: getattr(row, name) for name in _PLAIN},
            )
        )
    return tuple(found)


def _canonical(index: ModelIndex, name: str) -> str:
    model = index.resolve(name)
    return name if model is None else model.model


def _sealed(row: Row[Any] | None, clear: str, sealer: Sealer) -> str | None:
    if row is None:
        return None
    try:
        same = sealer.unseal(row.credential_sealed) == clear
    except WrongSecret:
        same = False  # the secret key was replaced: seal again with the present one
    return str(row.credential_sealed) if same else None


def _changes(
    present: Mapping[str, Row[Any]],
    wanted: Mapping[str, Mapping[str, Any]],
    keep: Collection[str] = (),
) -> dict[str, str]:
    """What to do with each name: create, change or remove."""
    actions = {name: "remove" for name in present if name not in wanted and name not in keep}
    for name, values in wanted.items():
        row = present.get(name)
        if row is None:
            actions[name] = "create"
        elif any(getattr(row, column) != value for column, value in values.items()):
            actions[name] = "change"
    return actions


def _write(
    connection: Connection,
    table: Table,
    kind: str,
    changes: Mapping[str, str],
    wanted: Mapping[str, Mapping[str, Any]],
    actor: str,
) -> bool:
    for name, action in sorted(changes.items()):
        if action == "create":
            connection.execute(insert(table).values(name=name, **wanted[name]))
        elif action == "change":
            connection.execute(update(table).where(table.c.name == name).values(**wanted[name]))
        else:
            connection.execute(delete(table).where(table.c.name == name))
        audit(connection, f"{kind}.{action}", name, actor, {})
    return bool(changes)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
