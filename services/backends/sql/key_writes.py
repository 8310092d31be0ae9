"""What the catalog writes of a key, in a transaction of `catalog_keys`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, insert, select, update

from services.backends.sql.catalog_ground import NotInCatalog, as_json, facts, require
from services.backends.sql.engine import now_us
from services.backends.sql.key_reads import keys_where
from services.backends.sql.limits import add_window, insert_limit, set_limit
from services.backends.sql.outbox import Told, audit_all
from services.backends.sql.sealing import Sealer
from services.backends.sql.tables import account, api_key, limit_row, member, routing_group
from services.core import keys
from services.core.catalog import Key
from services.core.errors import InvalidRequest
from services.core.ids import new_id
from services.core.subkeys import narrowed, networks

_QUOTA: Final = "key_quota"
_WINDOWS: Final = ("window_5h", "window_1d", "window_7d")
_KINDS: Final = (_QUOTA, *_WINDOWS)  # of a key's own limits
LISTS: Final = ("ip_allow", "ip_deny", "models")
PLAIN: Final = ("name", "expires_at", "concurrency", "requests_per_min", "tokens_per_min")
MONEY: Final = ("quota_nano", *(f"{kind}_nano" for kind in _WINDOWS))


def key_of(connection: Connection, key_id: str) -> Key:
    found = keys_where(connection, api_key.c.id == key_id)
    if not found:
        raise NotInCatalog(f"there is no key {key_id!r}")
    return found[0]


def insert_key(
    connection: Connection,
    account_id: str,
    parent_id: str | None,
    fields: dict[str, Any],
    clear: str,
    sealer: Sealer,
) -> Key:
    require(connection, account.c.id, account_id, "account")
    more: list[str] = []
    if parent_id is not None:
        parent = _parent(connection, parent_id, account_id)
        fields = narrowed(parent, fields)
        more = list(parent.limit_ids[:-1])  # all but the wallet
    elif fields.get("member_id") is not None:
        more = [_allotment(connection, fields["member_id"], account_id)]
    group = fields.get("group", "default")
    require(connection, routing_group.c.name, group, "group")
    key_id = new_id("key")
    windows = [
        insert_limit(connection, kind, key_id, fields[f"{kind}_nano"])
        for kind in _WINDOWS
        if fields[f"{kind}_nano"]
    ]
    values = {name: fields[name] for name in PLAIN}
    values |= {name: as_json(_list(name, fields[name])) for name in LISTS}
    row = {
        "id": key_id,
        "account_id": account_id,
        "parent_id": parent_id,
        "member_id": fields.get("member_id"),
        "group_name": group,
        "status": "active",
        "quota_limit_id": insert_limit(connection, _QUOTA, key_id, fields["quota_nano"] or None),
        "more_limit_ids": as_json([*windows, *more]),
        "created_at": now_us(),
    }
    connection.execute(insert(api_key).values(row | values | secret_columns(clear, sealer)))
    return key_of(connection, key_id)


def _parent(connection: Connection, parent_id: str, account_id: str) -> Key:
    parent = key_of(connection, parent_id)
    if parent.account_id != account_id:
        raise NotInCatalog(f"there is no key {parent_id!r}")
    if parent.parent_id is not None:
        raise InvalidRequest("parent_id: a sub-key has no sub-keys", param="parent_id")
    if parent.status != "active":
        raise InvalidRequest(f"parent_id: that key is {parent.status}", param="parent_id")
    return parent


def _allotment(connection: Connection, member_id: str, account_id: str) -> str:
    row = connection.execute(select(member).where(member.c.id == member_id)).one_or_none()
    if row is None or row.account_id != account_id:
        raise NotInCatalog(f"there is no member {member_id!r}")
    return str(row.quota_limit_id)


def apply(connection: Connection, key: Key, fields: Mapping[str, Any]) -> None:
    values = {name: fields[name] for name in PLAIN if name in fields}
    values |= {name: as_json(_list(name, fields[name])) for name in LISTS if name in fields}
    if "group" in fields:
        require(connection, routing_group.c.name, fields["group"], "group")
        family = (api_key.c.id == key.id) | (api_key.c.parent_id == key.id)
        connection.execute(update(api_key).where(family).values(group_name=fields["group"]))
    own = select(limit_row.c.kind, limit_row.c.id).where(
        limit_row.c.kind.in_(_KINDS), limit_row.c.subject == key.id
    )
    limits = {row.kind: row.id for row in connection.execute(own)}
    for name in (each for each in MONEY if each in fields):
        kind = _QUOTA if name == "quota_nano" else name.removesuffix("_nano")
        if kind in limits:
            set_limit(connection, limits[kind], fields[name] or None)
        elif fields[name]:
            add_window(connection, kind, key.id, limits[_QUOTA], fields[name])
    if values:
        connection.execute(update(api_key).where(api_key.c.id == key.id).values(**values))


def revoke(connection: Connection, key_id: str, actor: str) -> None:
    family = (api_key.c.id == key_id) | (api_key.c.parent_id == key_id)
    children = keys_where(connection, api_key.c.parent_id == key_id, api_key.c.status != "revoked")
    connection.execute(
        update(api_key)
        .where(family, api_key.c.status != "revoked")
        .values(status="revoked", revoked_at=now_us())
    )
    _tell_revoked(connection, children, actor)


def revoke_of_member(connection: Connection, member_id: str, actor: str) -> None:
    """Every key of the member, sub-keys too."""
    live = (api_key.c.member_id == member_id, api_key.c.status != "revoked")
    ended = keys_where(connection, *live)
    values = {"status": "revoked", "revoked_at": now_us()}
    connection.execute(update(api_key).where(*live).values(values))
    _tell_revoked(connection, ended, actor)


def _tell_revoked(connection: Connection, ended: Sequence[Key], actor: str) -> None:
    rows = [Told(key.id, told(key), key.account_id) for key in ended]
    audit_all(connection, "key.revoke", actor, rows)


def secret_columns(clear: str, sealer: Sealer) -> dict[str, str]:
    return {
        "masked": keys.masked(clear),
        "secret_sha256": keys.sha256_hex(clear),
        "secret_sealed": sealer.seal(clear),
    }


def _list(name: str, values: Sequence[str]) -> list[str]:
    if name == "models":
        return list(dict.fromkeys(values))
    return networks(name, values)


def told(key: Key) -> dict[str, str]:
    names = ("name", "masked", "group", "expires_at", "parent_id", "member_id", *MONEY, *LISTS)
    return facts({name: getattr(key, name) for name in names})


def changes(before: Key, after: Key) -> dict[str, str]:
    """The new values of what changed, empty ones told as such."""
    names = ("name", "group", *PLAIN, *MONEY, *LISTS)
    return {
        name: as_json(getattr(after, name))
        for name in dict.fromkeys(names)
        if getattr(after, name) != getattr(before, name)
    }
