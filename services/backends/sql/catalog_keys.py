"""Keys in the catalog: made, changed, rotated, revealed, ended."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Engine, insert, select, update

from services.backends.sql.catalog_ground import (
    OPERATOR,
    NotInCatalog,
    as_json,
    bump_version,
    create,
    facts,
    lock,
    require,
)
from services.backends.sql.engine import now_us, read
from services.backends.sql.key_reads import keys_where
from services.backends.sql.limits import add_window, insert_limit, set_limit
from services.backends.sql.outbox import audit
from services.backends.sql.sealing import Sealer
from services.backends.sql.tables import account, api_key, limit_row, member, routing_group
from services.core import keys
from services.core.catalog import Key
from services.core.errors import InvalidRequest
from services.core.ids import new_id
from services.core.subkeys import narrowed, networks

STATUSES: Final = ("active", "disabled", "revoked")
_WINDOWS: Final = ("window_5h", "window_1d", "window_7d")
_LISTS: Final = ("ip_allow", "ip_deny", "models")
_PLAIN: Final = ("name", "expires_at", "concurrency", "requests_per_min", "tokens_per_min")
_MONEY: Final = ("quota_nano", *(f"{kind}_nano" for kind in _WINDOWS))
_SETTINGS: Final = frozenset({*_PLAIN, *_LISTS, *_MONEY, "group"})


class KeyCatalog:
    """Over the SQL database. Every method blocks and may raise DatabaseUnavailable."""

    _engine: Engine
    _sealer: Sealer

    def create_key(
        self,
        account_id: str,
        name: str,
        group: str | None = None,
        quota_nano: int | None = None,
        expires_at: int | None = None,
        *,
        window_5h_nano: int | None = None,
        window_1d_nano: int | None = None,
        window_7d_nano: int | None = None,
        parent_id: str | None = None,
        member_id: str | None = None,
        ip_allow: Sequence[str] = (),
        ip_deny: Sequence[str] = (),
        models: Sequence[str] = (),
        concurrency: int = 0,
        requests_per_min: int = 0,
        tokens_per_min: int = 0,
        custom_secret: str | None = None,
        actor: str = OPERATOR,
    ) -> tuple[Key, str]:
        """A new key and its secret, made unless given. Money None or 0, rates 0, empty lists: no
        rule. What a sub-key (`parent_id`) leaves open is its parent's; the group is `default`, a
        sub-key's its parent's.

        Raises NotInCatalog (account, group, parent, member), AlreadyInCatalog (secret),
        InvalidRequest (a sub-key that is wider than its parent, a wrong value)."""
        if custom_secret is not None:
            keys.check_custom(custom_secret)
        clear = custom_secret or keys.generate()
        fields: dict[str, Any] = {
            "name": name,
            "quota_nano": quota_nano,
            "expires_at": expires_at,
            "window_5h_nano": window_5h_nano,
            "window_1d_nano": window_1d_nano,
            "window_7d_nano": window_7d_nano,
            "ip_allow": tuple(ip_allow),
            "ip_deny": tuple(ip_deny),
            "models": tuple(models),
            "concurrency": concurrency,
            "requests_per_min": requests_per_min,
            "tokens_per_min": tokens_per_min,
        }
        if group is not None:
            fields["group"] = group
        if member_id is not None:
            fields["member_id"] = member_id

        def insert_it(connection: Connection) -> Key:
            lock(connection)  # a parent that is narrowed meanwhile is seen
            made = _insert_key(connection, account_id, parent_id, fields, clear, self._sealer)
            bump_version(connection)
            audit(connection, "key.create", made.id, actor, _told(made), account_id)
            return made

        return create(self._engine, insert_it, "that secret is a key already"), clear

    def update_key(self, key_id: str, *, actor: str = OPERATOR, **fields: Any) -> Key:
        """Changes what `fields` names, as `create_key` names them, but for account, parent, member
        and secret. Widening a parent widens no sub-key. Raises as `create_key`."""
        for name in fields:
            if name not in _SETTINGS:
                raise InvalidRequest(f"{name}: a key has no such setting", param=name)

        def change(connection: Connection) -> Key:
            lock(connection)
            before = _key(connection, key_id)
            wanted = fields
            if before.parent_id is not None:
                # Of a sub-key only what is named may change, and only within the parent.
                parent = _key(connection, before.parent_id)
                allowed = narrowed(parent, {"member_id": before.member_id, **fields})
                wanted = {name: allowed[name] for name in fields}
            _apply(connection, before, wanted)
            after = _key(connection, key_id)
            bump_version(connection)
            audit(
                connection, "key.update", key_id, actor, _changes(before, after), after.account_id
            )
            return after

        return create(self._engine, change, "that key cannot be changed so")

    def rotate_key(self, key_id: str, *, actor: str = OPERATOR) -> tuple[Key, str]:
        """A new secret for the key; from its commit on the old one is no key. Raises NotInCatalog,
        InvalidRequest (a revoked key)."""
        clear = keys.generate()

        def rotate(connection: Connection) -> Key:
            if _key(connection, key_id).status == "revoked":
                raise InvalidRequest("status: a revoked key has no secret to rotate")
            values = _secret(clear, self._sealer)
            connection.execute(update(api_key).where(api_key.c.id == key_id).values(**values))
            made = _key(connection, key_id)
            bump_version(connection)
            audit(connection, "key.rotate", key_id, actor, _told(made), made.account_id)
            return made

        return create(self._engine, rotate, "that secret is a key already"), clear

    def set_key_status(self, key_id: str, status: str, *, actor: str = OPERATOR) -> Key:
        """active, disabled or revoked; revoked is for good and takes the sub-keys along. From its
        commit on a key that is not active gets no grant, nor do its sub-keys. Repeating it changes
        nothing. Raises NotInCatalog, InvalidRequest."""
        if status not in STATUSES:
            raise InvalidRequest(f"status: one of {', '.join(STATUSES)}", param="status")

        def change(connection: Connection) -> Key:
            # Sub-keys are locked too: a grant of theirs reads the parent's state under their lock.
            family = (api_key.c.id == key_id) | (api_key.c.parent_id == key_id)
            ordered = select(api_key.c.id).where(family).order_by(api_key.c.id)
            connection.execute(ordered.with_for_update())
            before = _key(connection, key_id)
            if before.status == status:
                return before
            if before.status == "revoked":
                raise InvalidRequest("status: a revoked key stays revoked", param="status")
            if status == "revoked":
                _revoke(connection, key_id, actor)
            else:
                connection.execute(
                    update(api_key).where(api_key.c.id == key_id).values(status=status)
                )
            bump_version(connection)
            after = _key(connection, key_id)
            action = {"revoked": "key.revoke", "disabled": "key.disable"}.get(status, "key.enable")
            audit(connection, action, key_id, actor, _told(after), after.account_id)
            return after

        return create(self._engine, change, "that key cannot be changed so")

    def revoke_key(self, key_id: str, *, actor: str = OPERATOR) -> Key:
        """As `set_key_status(key_id, "revoked")`."""
        return self.set_key_status(key_id, "revoked", actor=actor)

    def reveal_key(self, key_id: str) -> str:
        """The key in clear text, for its owner only. Raises NotInCatalog, WrongSecret."""
        query = select(api_key.c.secret_sealed).where(api_key.c.id == key_id)
        sealed = read(
            self._engine, lambda connection: connection.execute(query).scalar_one_or_none()
        )
        if sealed is None:
            raise NotInCatalog(f"there is no key {key_id!r}")
        return self._sealer.unseal(sealed)

    def key(self, key_id: str) -> Key:
        """As it was set, not as it inherits. Raises NotInCatalog."""
        return read(self._engine, lambda connection: _key(connection, key_id))

    def keys(self, account_id: str | None = None) -> list[Key]:
        """All, or those of one account, oldest first, as they were set."""
        conditions = [] if account_id is None else [api_key.c.account_id == account_id]
        return read(self._engine, lambda connection: keys_where(connection, *conditions))

    def key_by_sha256(self, secret_sha256: str) -> Key | None:
        """The key with that lookup hash, in whatever state."""
        found = read(
            self._engine, lambda c: keys_where(c, api_key.c.secret_sha256 == secret_sha256)
        )
        return found[0] if found else None


def _key(connection: Connection, key_id: str) -> Key:
    found = keys_where(connection, api_key.c.id == key_id)
    if not found:
        raise NotInCatalog(f"there is no key {key_id!r}")
    return found[0]


def _insert_key(
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
    values = {name: fields[name] for name in _PLAIN}
    values |= {name: as_json(_list(name, fields[name])) for name in _LISTS}
    row = {
        "id": key_id,
        "account_id": account_id,
        "parent_id": parent_id,
        "member_id": fields.get("member_id"),
        "group_name": group,
        "status": "active",
        "quota_limit_id": insert_limit(
            connection, "key_quota", key_id, fields["quota_nano"] or None
        ),
        "more_limit_ids": as_json([*windows, *more]),
        "created_at": now_us(),
    }
    connection.execute(insert(api_key).values(row | values | _secret(clear, sealer)))
    return _key(connection, key_id)


def _parent(connection: Connection, parent_id: str, account_id: str) -> Key:
    parent = _key(connection, parent_id)
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


def _apply(connection: Connection, key: Key, fields: Mapping[str, Any]) -> None:
    values = {name: fields[name] for name in _PLAIN if name in fields}
    values |= {name: as_json(_list(name, fields[name])) for name in _LISTS if name in fields}
    if "group" in fields:
        require(connection, routing_group.c.name, fields["group"], "group")
        family = (api_key.c.id == key.id) | (api_key.c.parent_id == key.id)
        connection.execute(update(api_key).where(family).values(group_name=fields["group"]))
    own = select(limit_row.c.kind, limit_row.c.id).where(limit_row.c.subject == key.id)
    limits = {row.kind: row.id for row in connection.execute(own)}
    for name in (each for each in _MONEY if each in fields):
        kind = "key_quota" if name == "quota_nano" else name.removesuffix("_nano")
        if kind in limits:
            set_limit(connection, limits[kind], fields[name] or None)
        elif fields[name]:
            add_window(connection, kind, key.id, limits["key_quota"], fields[name])
    if values:
        connection.execute(update(api_key).where(api_key.c.id == key.id).values(**values))


def _revoke(connection: Connection, key_id: str, actor: str) -> None:
    family = (api_key.c.id == key_id) | (api_key.c.parent_id == key_id)
    children = keys_where(connection, api_key.c.parent_id == key_id, api_key.c.status != "revoked")
    connection.execute(
        update(api_key)
        .where(family, api_key.c.status != "revoked")
        .values(status="revoked", revoked_at=now_us())
    )
    for child in children:
        audit(connection, "key.revoke", child.id, actor, _told(child), child.account_id)


def revoke_of_member(connection: Connection, member_id: str, actor: str) -> None:
    """Every key of the member, sub-keys too."""
    live = (api_key.c.member_id == member_id, api_key.c.status != "revoked")
    ended = keys_where(connection, *live)
    values = {"status": "revoked", "revoked_at": now_us()}
    connection.execute(update(api_key).where(*live).values(values))
    for key in ended:
        audit(connection, "key.revoke", key.id, actor, _told(key), key.account_id)


def _secret(clear: str, sealer: Sealer) -> dict[str, str]:
    return {
        "masked": keys.masked(clear),
        "secret_sha256": keys.sha256_hex(clear),
        "secret_sealed": sealer.seal(clear),
    }


def _list(name: str, values: Sequence[str]) -> list[str]:
    if name == "models":
        return list(dict.fromkeys(values))
    return networks(name, values)


def _told(key: Key) -> dict[str, str]:
    names = ("name", "masked", "group", "expires_at", "parent_id", "member_id", *_MONEY, *_LISTS)
    return facts({name: getattr(key, name) for name in names})


def _changes(before: Key, after: Key) -> dict[str, str]:
    """The new values of what changed, empty ones told as such."""
    names = ("name", "group", *_PLAIN, *_MONEY, *_LISTS)
    return {
        name: as_json(getattr(after, name))
        for name in dict.fromkeys(names)
        if getattr(after, name) != getattr(before, name)
    }
