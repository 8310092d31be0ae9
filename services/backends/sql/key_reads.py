"""Keys as the database has them, and as they hold with what they inherit."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, Select, or_, select

from services.backends.sql.catalog_ground import as_tuple
from services.backends.sql.tables import account, api_key, limit_row
from services.core.budgets import WINDOWS_US
from services.core.catalog import Key, Member
from services.core.subkeys import inherited


class _Window(NamedTuple):
    kind: str
    subject: str
    limit_nano: int | None


def keys_where(connection: Connection, *conditions: Any) -> list[Key]:
    """As they were set, oldest first."""
    windows = _windows(connection, *conditions)
    rows = connection.execute(_keys(*conditions)).all()
    return [_key(row, windows) for row in rows]


def holding(found: Iterable[Key], members: Mapping[str, Member]) -> list[Key]:
    """The keys with what they inherit from parents and members. A sub-key whose
    parent is not among them is none: what it may would not be known."""
    by_id = {key.id: key for key in found}
    held: list[Key] = []
    for key in by_id.values():
        if key.parent_id is not None:
            parent = by_id.get(key.parent_id)
            if parent is None:
                continue
            key = inherited(key, parent)
        member = members.get(key.member_id or "")
        if member is not None:
            status = key.status if member.status == "active" else "disabled"
            key = msgspec.structs.replace(key, status=status, model_caps=member.cap_limit_ids)
        held.append(key)
    return held


def _keys(*conditions: Any) -> Select[Any]:
    return (
        select(api_key, account.c.wallet_limit_id, limit_row.c.limit_nano.label("quota_nano"))
        .join(account, account.c.id == api_key.c.account_id)
        .join(limit_row, limit_row.c.id == api_key.c.quota_limit_id)
        .where(*conditions)
        .order_by(api_key.c.created_at, api_key.c.id)
    )


def _windows(connection: Connection, *conditions: Any) -> dict[str, _Window]:
    """The windows of those keys and their parents, by limit id."""
    query = select(limit_row.c.id, limit_row.c.kind, limit_row.c.subject, limit_row.c.limit_nano)
    query = query.where(limit_row.c.kind.in_(WINDOWS_US))
    if conditions:
        ids = (select(column).where(*conditions) for column in (api_key.c.id, api_key.c.parent_id))
        query = query.where(or_(*(limit_row.c.subject.in_(each) for each in ids)))
    return {row[0]: _Window(*row[1:]) for row in connection.execute(query)}


def _key(row: Row[Any], windows: Mapping[str, _Window]) -> Key:
    more = as_tuple(row.more_limit_ids)
    own = {
        windows[each].kind: windows[each].limit_nano
        for each in more
        if each in windows and windows[each].subject == row.id
    }
    return Key(
        id=row.id,
        account_id=row.account_id,
        name=row.name,
        masked=row.masked,
        secret_sha256=row.secret_sha256,
        group=row.group_name,
        status=row.status,
        quota_nano=row.quota_nano,
        expires_at=row.expires_at,
        created_at=row.created_at,
        parent_id=row.parent_id,
        member_id=row.member_id,
        window_5h_nano=own.get("window_5h"),
        window_1d_nano=own.get("window_1d"),
        window_7d_nano=own.get("window_7d"),
        ip_allow=as_tuple(row.ip_allow),
        ip_deny=as_tuple(row.ip_deny),
        models=as_tuple(row.models),
        concurrency=row.concurrency,
        requests_per_min=row.requests_per_min,
        tokens_per_min=row.tokens_per_min,
        limit_ids=(row.quota_limit_id, *more, row.wallet_limit_id),
        window_ids=tuple(each for each in more if each in windows),
    )
