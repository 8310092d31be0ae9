"""Keys in the catalog: made, changed, rotated, revealed, ended."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Engine, select, update

from services.backends.sql.catalog_changes import bump_version
from services.backends.sql.catalog_ground import (
    OPERATOR,
    NotInCatalog,
    create,
    lock,
    page_of_ids,
)
from services.backends.sql.engine import read
from services.backends.sql.key_reads import KeyFilter, keys_where
from services.backends.sql.key_writes import (
    LISTS,
    MONEY,
    PLAIN,
    apply,
    changes,
    insert_key,
    key_of,
    revoke,
    secret_columns,
    told,
)
from services.backends.sql.outbox import audit
from services.backends.sql.sealing import Sealer
from services.backends.sql.tables import api_key
from services.core import keys
from services.core.catalog import Key
from services.core.errors import InvalidRequest
from services.core.names import check_name
from services.core.subkeys import narrowed

STATUSES: Final = ("active", "disabled", "revoked")
_SETTINGS: Final = frozenset({*PLAIN, *LISTS, *MONEY, "group"})


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
        check_name(name)
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
            made = insert_key(connection, account_id, parent_id, fields, clear, self._sealer)
            bump_version(connection, account_id)
            audit(connection, "key.create", made.id, actor, told(made), account_id)
            return made

        return create(self._engine, insert_it, "that secret is a key already"), clear

    def update_key(self, key_id: str, *, actor: str = OPERATOR, **fields: Any) -> Key:
        """Changes what `fields` names, as `create_key` names them, but for account, parent, member
        and secret. Widening a parent widens no sub-key. Raises as `create_key`."""
        for name in fields:
            if name not in _SETTINGS:
                raise InvalidRequest(f"{name}: a key has no such setting", param=name)
        if "name" in fields:
            check_name(fields["name"])

        def change(connection: Connection) -> Key:
            lock(connection)
            before = key_of(connection, key_id)
            wanted = fields
            if before.parent_id is not None:
                # Of a sub-key only what is named may change, and only within the parent.
                parent = key_of(connection, before.parent_id)
                allowed = narrowed(parent, {"member_id": before.member_id, **fields})
                wanted = {name: allowed[name] for name in fields}
            apply(connection, before, wanted)
            after = key_of(connection, key_id)
            bump_version(connection, after.account_id)
            audit(connection, "key.update", key_id, actor, changes(before, after), after.account_id)
            return after

        return create(self._engine, change, "that key cannot be changed so")

    def rotate_key(self, key_id: str, *, actor: str = OPERATOR) -> tuple[Key, str]:
        """A new secret for the key; from its commit on the old one is no key. Raises NotInCatalog,
        InvalidRequest (a revoked key)."""
        clear = keys.generate()

        def rotate(connection: Connection) -> Key:
            if key_of(connection, key_id).status == "revoked":
                raise InvalidRequest("status: a revoked key has no secret to rotate")
            values = secret_columns(clear, self._sealer)
            connection.execute(update(api_key).where(api_key.c.id == key_id).values(**values))
            made = key_of(connection, key_id)
            bump_version(connection, made.account_id)
            audit(connection, "key.rotate", key_id, actor, told(made), made.account_id)
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
            before = key_of(connection, key_id)
            if before.status == status:
                return before
            if before.status == "revoked":
                raise InvalidRequest("status: a revoked key stays revoked", param="status")
            if status == "revoked":
                revoke(connection, key_id, actor)
            else:
                connection.execute(
                    update(api_key).where(api_key.c.id == key_id).values(status=status)
                )
            bump_version(connection, before.account_id)
            after = key_of(connection, key_id)
            action = {"revoked": "key.revoke", "disabled": "key.disable"}.get(status, "key.enable")
            audit(connection, action, key_id, actor, told(after), after.account_id)
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
        return read(self._engine, lambda connection: key_of(connection, key_id))

    def keys(self, account_id: str | None = None) -> list[Key]:
        """All, or those of one account, oldest first, as they were set."""
        conditions = [] if account_id is None else [api_key.c.account_id == account_id]
        return read(self._engine, lambda connection: keys_where(connection, *conditions))

    def keys_page(self, chosen: KeyFilter, limit: int, offset: int) -> tuple[list[Key], int]:
        """A part of a list, as `keys`, and how many there are in all."""

        def fn(connection: Connection) -> tuple[list[Key], int]:
            ids, total = page_of_ids(connection, api_key, chosen.conditions(), limit, offset)
            return keys_where(connection, api_key.c.id.in_(ids)), total

        return read(self._engine, fn)
