"""Keys as the database has them, and as they hold with what they inherit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from sys import intern
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, or_, select, union

from services.backends.sql.catalog_ground import as_tuple
from services.backends.sql.tables import account, api_key, limit_row
from services.core.budgets import WINDOWS_US
from services.core.catalog import Key, Member
from services.core.subkeys import inherited

_PAGE: Final = 500


class _Window(NamedTuple):
    kind: str
    subject: str
    limit_nano: int | None


class KeyFilter(NamedTuple):
    """Which keys of a list; None: any. Without a `status` those that are not revoked. `around`: a
    key, its sub-keys and, when a member is named beside it, that member's keys."""

    account_id: str | None = None
    status: str | None = None
    parent_id: str | None = None
    member_id: str | None = None
    around: tuple[str, str | None] | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        own, status = api_key.c, self.status
        found = [own.status == status if status else own.status != "revoked"]
        for column in (own.account_id, own.parent_id, own.member_id):
            wanted = getattr(self, column.name)
            if wanted is not None:
                found.append(column == wanted)
        if self.around is not None:
            key_id, member_id = self.around
            near = [own.id == key_id, own.parent_id == key_id]
            found.append(or_(*near, *([own.member_id == member_id] if member_id else [])))
        return found


_WINDOWS: Final = select(
    limit_row.c.id, limit_row.c.kind, limit_row.c.subject, limit_row.c.limit_nano
).where(limit_row.c.kind.in_(WINDOWS_US))


def keys_where(connection: Connection, *conditions: Any) -> list[Key]:
    """As they were set, oldest first."""
    windows = _windows_of(connection, *conditions)
    rows = connection.execute(_keys(*conditions).order_by(api_key.c.created_at, api_key.c.id))
    return [_key(row, windows) for row in rows]


def many_keys(connection: Connection, conditions: Iterable[Any], *, whole: bool) -> Iterator[Key]:
    """As `keys_where`, for thousands: in no order, and by pages, so that a worker that waits for
    its database in the hub does other things between them. `whole`: most of all keys."""
    windows = _windows(connection, _WINDOWS) if whole else _windows_of(connection, *conditions)
    rows = connection.execute(_keys(*conditions), execution_options={"yield_per": _PAGE})
    return (_key(row, windows) for row in rows)


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
    """In the order in which `_key` takes the columns."""
    own = api_key.c
    return (
        select(
            own.id,
            own.account_id,
            own.name,
            own.masked,
            own.secret_sha256,
            own.group_name,
            own.status,
            limit_row.c.limit_nano,
            own.expires_at,
            own.created_at,
            own.parent_id,
            own.member_id,
            own.ip_allow,
            own.ip_deny,
            own.models,
            own.concurrency,
            own.requests_per_min,
            own.tokens_per_min,
            own.quota_limit_id,
            own.more_limit_ids,
            account.c.wallet_limit_id,
        )
        .join(account, account.c.id == own.account_id)
        .join(limit_row, limit_row.c.id == own.quota_limit_id)
        .where(*conditions)
    )


def _windows_of(connection: Connection, *conditions: Any) -> dict[str, _Window]:
    """The windows of those keys and their parents, by limit id."""
    of = (
        _WINDOWS.join_from(api_key, limit_row, limit_row.c.subject == whose).where(*conditions)
        for whose in (api_key.c.id, api_key.c.parent_id)
    )
    return _windows(connection, union(*of))


def _windows(connection: Connection, query: Any) -> dict[str, _Window]:
    return {row[0]: _Window(*row[1:]) for row in connection.execute(query)}


def _key(row: Sequence[Any], windows: Mapping[str, _Window]) -> Key:
    # By place: an attribute of a row costs as much as the rest of a key. What many have in common
    # is one text: there may be hundreds of thousands.
    (
        key_id,
        account_id,
        name,
        masked,
        secret_sha256,
        group,
        status,
        quota_nano,
        expires_at,
        created_at,
        parent_id,
        member_id,
        ip_allow,
        ip_deny,
        models,
        concurrency,
        requests_per_min,
        tokens_per_min,
        quota_limit_id,
        more_limit_ids,
        wallet_limit_id,
    ) = row
    more = as_tuple(more_limit_ids)
    window_ids = tuple(each for each in more if each in windows) if more else ()
    own = {
        windows[each].kind: windows[each].limit_nano
        for each in window_ids
        if windows[each].subject == key_id
    }
    return Key(
        id=key_id,
        account_id=intern(account_id),
        name=name,
        masked=masked,
        secret_sha256=secret_sha256,
        group=intern(group),
        status=intern(status),
        quota_nano=quota_nano,
        expires_at=expires_at,
        created_at=created_at,
        parent_id=parent_id,
        member_id=member_id,
        window_5h_nano=own.get("window_5h"),
        window_1d_nano=own.get("window_1d"),
        window_7d_nano=own.get("window_7d"),
        ip_allow=as_tuple(ip_allow),
        ip_deny=as_tuple(ip_deny),
        models=as_tuple(models),
        concurrency=concurrency,
        requests_per_min=requests_per_min,
        tokens_per_min=tokens_per_min,
        limit_ids=(quota_limit_id, *more, wallet_limit_id),
        window_ids=window_ids,
    )
