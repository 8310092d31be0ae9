"""Members of orgs in the catalog: what each may call and spend."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, Row, insert, select, update

from services.backends.sql.bulk import among
from services.backends.sql.catalog_changes import bump_version
from services.backends.sql.catalog_ground import (
    OPERATOR,
    NotInCatalog,
    as_json,
    as_tuple,
    create,
    facts,
    lock,
    page_of_ids,
    require,
)
from services.backends.sql.engine import database_now_us, read, write
from services.backends.sql.key_writes import revoke_of_member
from services.backends.sql.limits import insert_limit, set_limit
from services.backends.sql.outbox import Told, audit_all
from services.backends.sql.tables import account, limit_row, member, member_model_cap
from services.core.catalog import Member
from services.core.errors import InvalidRequest
from services.core.ids import new_id
from services.core.names import check_name

ROLES: Final = ("owner", "admin", "member")
STATUSES: Final = ("active", "disabled")
_PLAIN: Final = ("name", "email", "role", "status", "concurrency")


class MemberCatalog:
    """Over the SQL database. Every method blocks and may raise DatabaseUnavailable."""

    _engine: Engine

    def create_member(
        self,
        account_id: str,
        name: str,
        *,
        email: str = "",
        role: str = "member",
        models: Iterable[str] = (),
        concurrency: int = 0,
        quota_nano: int | None = None,
        caps_nano: Mapping[str, int | None] | None = None,
        actor: str = OPERATOR,
    ) -> Member:
        """A new member of an org, without models unless some are granted (`["*"]`: every one).
        Raises NotInCatalog, AlreadyInCatalog (the name), InvalidRequest."""
        _check({"role": role, "name": name})

        def insert_it(connection: Connection) -> Member:
            kind = connection.execute(
                select(account.c.kind).where(account.c.id == account_id)
            ).scalar_one_or_none()
            if kind is None:
                raise NotInCatalog(f"there is no account {account_id!r}")
            if kind != "org":
                raise InvalidRequest("account_id: only an org has members", param="account_id")
            made = new_id("mem")
            row = {
                "id": made,
                "account_id": account_id,
                "name": name,
                "email": email,
                "role": role,
                "status": "active",
                "models": as_json(list(models)),
                "concurrency": concurrency,
                "quota_limit_id": insert_limit(
                    connection, "member_quota", made, quota_nano or None
                ),
                "created_at": database_now_us(connection),
            }
            connection.execute(insert(member).values(row))
            _set_caps(connection, made, caps_nano or {})
            return _told(connection, made, "member.create", actor)

        return create(self._engine, insert_it, f"the org has a member {name!r} already")

    def update_member(self, member_id: str, *, actor: str = OPERATOR, **fields: Any) -> Member:
        """Changes name, email, role, status, models, concurrency, quota_nano, and the caps that
        `caps_nano` names (None or 0: no cap). Raises as `create_member`."""
        _check(fields)
        plain = {name: value for name, value in fields.items() if name in _PLAIN}
        if "models" in fields:
            plain["models"] = as_json(list(fields["models"]))

        def change(connection: Connection) -> Member:
            lock(connection)
            if plain:
                connection.execute(update(member).where(member.c.id == member_id).values(**plain))
            found = read_members(connection, member.c.id == member_id)
            if not found:
                raise NotInCatalog(f"there is no member {member_id!r}")
            if "quota_nano" in fields:
                set_limit(connection, found[0].quota_limit_id, fields["quota_nano"] or None)
            _set_caps(connection, member_id, fields.get("caps_nano") or {})
            return _told(connection, member_id, "member.update", actor)

        return create(self._engine, change, f"the org has a member {fields.get('name')!r} already")

    def grant_models(
        self,
        account_id: str,
        models: Iterable[str],
        member_ids: Sequence[str] | None = None,
        *,
        actor: str = OPERATOR,
    ) -> list[Member]:
        """The same models for many members of an org, for all without `member_ids`; all or none.
        Raises NotInCatalog."""
        text = as_json(list(models))
        chosen = None if member_ids is None else set(member_ids)

        def change(connection: Connection) -> list[Member]:
            lock(connection)
            org = member.c.account_id == account_id
            found = read_members(connection, org)
            for member_id in (chosen or set()).difference(each.id for each in found):
                raise NotInCatalog(f"there is no member {member_id!r}")
            statement = update(member).where(org)
            if chosen is not None:
                statement = statement.where(member.c.id.in_(among(connection, chosen)))
            connection.execute(statement.values(models=text))
            changed = [
                msgspec.structs.replace(each, models=as_tuple(text))
                for each in found
                if chosen is None or each.id in chosen
            ]
            _tell(connection, changed, "member.update", actor)
            return changed

        return write(self._engine, change)

    def remove_member(self, member_id: str, *, actor: str = OPERATOR) -> Member:
        """Disables the member and revokes its keys; it stays known, for its usage does. Raises
        NotInCatalog."""

        def change(connection: Connection) -> Member:
            lock(connection)
            require(connection, member.c.id, member_id, "member")
            connection.execute(
                update(member).where(member.c.id == member_id).values(status="disabled")
            )
            revoke_of_member(connection, member_id, actor)
            return _told(connection, member_id, "member.remove", actor)

        return write(self._engine, change)

    def member(self, member_id: str) -> Member:
        """Raises NotInCatalog."""
        found = read(self._engine, lambda c: read_members(c, member.c.id == member_id))
        if not found:
            raise NotInCatalog(f"there is no member {member_id!r}")
        return found[0]

    def members(self, account_id: str) -> list[Member]:
        """Those of an org, oldest first."""
        return read(self._engine, lambda c: read_members(c, member.c.account_id == account_id))

    def members_page(self, account_id: str, limit: int, offset: int) -> tuple[list[Member], int]:
        """A part of them, and how many the org has in all."""

        def fn(connection: Connection) -> tuple[list[Member], int]:
            org = member.c.account_id == account_id
            ids, total = page_of_ids(connection, member, [org], limit, offset)
            return read_members(connection, member.c.id.in_(ids)), total

        return read(self._engine, fn)

    def owners(self, account_id: str) -> frozenset[str]:
        """The ids of an org's owners."""
        query = select(member.c.id).where(
            member.c.account_id == account_id, member.c.role == "owner"
        )
        return read(self._engine, lambda c: frozenset(c.execute(query).scalars()))


def read_members(connection: Connection, *conditions: Any) -> list[Member]:
    caps: dict[str, list[Row[Any]]] = {}
    query = (
        select(member_model_cap, limit_row.c.limit_nano)
        .join(limit_row, limit_row.c.id == member_model_cap.c.limit_id)
        .join(member, member.c.id == member_model_cap.c.member_id)
        .where(*conditions)
    )
    for row in connection.execute(query.order_by(member_model_cap.c.model)):
        caps.setdefault(row.member_id, []).append(row)
    rows = connection.execute(
        select(member, limit_row.c.limit_nano.label("quota_nano"))
        .join(limit_row, limit_row.c.id == member.c.quota_limit_id)
        .where(*conditions)
        .order_by(member.c.created_at, member.c.id)
    )
    return [
        Member(
            id=row.id,
            account_id=row.account_id,
            name=row.name,
            email=row.email,
            role=row.role,
            status=row.status,
            models=as_tuple(row.models),
            concurrency=row.concurrency,
            quota_nano=row.quota_nano,
            quota_limit_id=row.quota_limit_id,
            caps_nano={cap.model: cap.limit_nano for cap in caps.get(row.id, ())},
            cap_limit_ids={cap.model: cap.limit_id for cap in caps.get(row.id, ())},
            created_at=row.created_at,
        )
        for row in rows
    ]


def _set_caps(connection: Connection, member_id: str, caps_nano: Mapping[str, int | None]) -> None:
    """A cap counts from when it was first made. Its row stays when it is taken away: leases go
    on naming it."""
    query = select(member_model_cap.c.model, member_model_cap.c.limit_id)
    known = {
        row.model: row.limit_id
        for row in connection.execute(query.where(member_model_cap.c.member_id == member_id))
    }
    for model, cap_nano in caps_nano.items():
        if model in known:
            set_limit(connection, known[model], cap_nano or None)
        elif cap_nano:
            made = insert_limit(connection, "member_model", f"{member_id}:{model}", cap_nano)
            row = {"member_id": member_id, "model": model, "limit_id": made}
            connection.execute(insert(member_model_cap).values(row))


def _told(connection: Connection, member_id: str, action: str, actor: str) -> Member:
    (made,) = read_members(connection, member.c.id == member_id)
    _tell(connection, [made], action, actor)
    return made


def _tell(connection: Connection, made: Sequence[Member], action: str, actor: str) -> None:
    """Members of one org."""
    if not made:
        return
    bump_version(connection, made[0].account_id)
    names = ("name", "role", "status", "models", "concurrency", "quota_nano", "caps_nano")
    details = [facts({name: getattr(each, name) for name in names}) for each in made]
    rows = [
        Told(each.id, detail, each.account_id) for each, detail in zip(made, details, strict=True)
    ]
    audit_all(connection, action, actor, rows)


def _check(fields: Mapping[str, Any]) -> None:
    known = (*_PLAIN, "models", "quota_nano", "caps_nano")
    for name in fields:
        if name not in known:
            raise InvalidRequest(f"{name}: a member has no such setting", param=name)
    if "name" in fields:
        check_name(fields["name"])
    for name, words in (("role", ROLES), ("status", STATUSES)):
        if name in fields and fields[name] not in words:
            raise InvalidRequest(f"{name}: one of {', '.join(words)}", param=name)
