"""`/api/v1/keys`: list, create, get, change, end; reveal, rotate, disable and enable of one key."""

from functools import partial
from typing import Any

import falcon

from schemas.errors import Code
from schemas.management import CreateKey, UpdateKey
from services.backends.sql.key_reads import KeyFilter
from services.core.catalog import Key
from services.core.errors import InvalidRequest, Refusal
from services.edge.manage.bodies import key_fields
from services.edge.manage.desk import Manager, is_limited, not_found
from services.edge.manage.managed import Managed, page_of
from services.edge.manage.shapes import key_body, used_body

_LISTED = ("active", "disabled", "revoked")


class KeysResource(Managed):
    """`GET` lists what the caller sees, revoked ones only when `status=revoked` asks for them.
    `POST` makes a key and tells its secret, this once."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._manage(req, resp, lambda manager: self._list(req, manager))

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        def create(manager: Manager) -> dict[str, Any]:
            body = self._body(req, CreateKey)
            fields = key_fields(body, self._index, self._worker.clock.now_us())
            fields |= _place(manager, body, self._spender(manager, body))
            if body.custom_key is not None:
                fields["custom_secret"] = body.custom_key
            made, secret = self._sql(self._desk.catalog.create_key, actor=manager.actor, **fields)
            if body.status == "disabled":
                made = self._sql(
                    self._desk.catalog.set_key_status, made.id, "disabled", actor=manager.actor
                )
            resp.status = 201
            return {**key_body(made), "key": secret}

        self._change(req, resp, create)

    def _spender(self, manager: Manager, body: CreateKey) -> str | None:
        """The member whose money an admin's new key would spend: a sub-key's is its parent's."""
        if body.parent_id is None or manager.role == "owner" or not manager.manages_account:
            return body.member_id
        parent: Key = self._sql(self._desk.catalog.key, body.parent_id)
        if not manager.sees(parent):
            raise not_found("key", body.parent_id)
        return parent.member_id

    def _list(self, req: falcon.Request, manager: Manager) -> dict[str, Any]:
        status = req.get_param("status")
        if status not in (None, *_LISTED):
            raise InvalidRequest(f"status: one of {', '.join(_LISTED)}", param="status")
        chosen = KeyFilter(
            account_id=req.get_param("account_id"),
            status=status,
            parent_id=req.get_param("parent_id"),
            member_id=req.get_param("member_id"),
        )
        if manager.key is not None:
            chosen = chosen._replace(account_id=manager.key.account_id, around=manager.around)
        read = partial(self._desk.catalog.keys_page, chosen)
        page, told = page_of(req, lambda limit, offset: self._sql(read, limit, offset))
        return {"items": [key_body(key) for key in page], **told}


class _OneKey(Managed):
    def _key(self, manager: Manager, key_id: str, *, to_change: bool = True) -> Key:
        """The key, when it exists for the caller. Raises Refusal: NOT_FOUND, PERMISSION_DENIED."""
        key = self._sql(self._desk.catalog.key, key_id)
        if not manager.sees(key) or key.status == "revoked":
            raise not_found("key", key_id)
        if to_change and not manager.changes(key):
            raise Refusal(
                Code.PERMISSION_DENIED,
                "permission_denied: only an owner's key changes what acts as one"
                if manager.manages_account
                else "permission_denied: a key with limits of its own manages its sub-keys only",
            )
        return key


class KeyResource(_OneKey):
    """`GET`, `PUT` (or `PATCH`), `DELETE` of one key. A deleted key is none from then on; its
    running streams end."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, key_id: str) -> None:
        def get(manager: Manager) -> dict[str, Any]:
            key = self._key(manager, key_id, to_change=False)
            limits = list(key.limit_ids)
            states = self._sql(self._worker.accounts.limit_states, key.account_id, limits)
            return {**key_body(key), **used_body(key, states)}

        self._manage(req, resp, get)

    def on_put(self, req: falcon.Request, resp: falcon.Response, key_id: str) -> None:
        def change(manager: Manager) -> dict[str, Any]:
            body = self._body(req, UpdateKey)
            key = self._key(manager, key_id)
            fields = key_fields(body, self._index, self._worker.clock.now_us())
            if fields:
                key = self._sql(
                    self._desk.catalog.update_key, key_id, actor=manager.actor, **fields
                )
            if isinstance(body.status, str):
                key = self._sql(
                    self._desk.catalog.set_key_status, key_id, body.status, actor=manager.actor
                )
            return key_body(key)

        self._change(req, resp, change)

    on_patch = on_put

    def on_delete(self, req: falcon.Request, resp: falcon.Response, key_id: str) -> None:
        def delete(manager: Manager) -> None:
            self._key(manager, key_id)
            self._sql(self._desk.catalog.revoke_key, key_id, actor=manager.actor)
            resp.status = 204

        self._change(req, resp, delete)


class RevealResource(_OneKey):
    """`GET /api/v1/keys/{id}/reveal`: the secret, for who may change the key."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, key_id: str) -> None:
        def reveal(manager: Manager) -> dict[str, str]:
            self._key(manager, key_id)
            resp.set_header("cache-control", "no-store")
            return {"id": key_id, "key": self._sql(self._desk.catalog.reveal_key, key_id)}

        self._manage(req, resp, reveal)


class RotateResource(_OneKey):
    """`POST /api/v1/keys/{id}/rotate`: another secret; the old one dies before the answer."""

    def on_post(self, req: falcon.Request, resp: falcon.Response, key_id: str) -> None:
        def rotate(manager: Manager) -> dict[str, Any]:
            self._key(manager, key_id)
            key, secret = self._sql(self._desk.catalog.rotate_key, key_id, actor=manager.actor)
            return {**key_body(key), "key": secret}

        self._change(req, resp, rotate)


class StatusResource(_OneKey):
    """`POST /api/v1/keys/{id}/disable` and `/enable`."""

    def on_post(self, req: falcon.Request, resp: falcon.Response, key_id: str) -> None:
        status = "disabled" if req.path.endswith("/disable") else "active"

        def switch(manager: Manager) -> dict[str, Any]:
            self._key(manager, key_id)
            return key_body(
                self._sql(self._desk.catalog.set_key_status, key_id, status, actor=manager.actor)
            )

        self._change(req, resp, switch)


def _place(manager: Manager, body: CreateKey, spender: str | None) -> dict[str, Any]:
    """Whose key it becomes: account, parent and member. `spender`: the member whose money it
    would spend. Raises Refusal, InvalidRequest."""
    place = {"parent_id": body.parent_id, "member_id": body.member_id}
    if manager.key is None:
        if body.account_id is None:
            raise InvalidRequest("account_id: say whose key it is", param="account_id")
        return {**place, "account_id": body.account_id}
    own = manager.key
    if body.account_id not in (None, own.account_id):
        raise not_found("account", str(body.account_id))
    if manager.manages_account:
        if manager.is_above(spender):
            raise Refusal(
                Code.PERMISSION_DENIED,
                "permission_denied: only an owner's key makes keys of the org itself and of owners",
                param="member_id" if body.parent_id is None else "parent_id",
            )
        return {**place, "account_id": own.account_id}
    if body.parent_id == own.id and not own.parent_id:
        return {**place, "account_id": own.account_id}
    if own.member_id is None or is_limited(own) or body.parent_id is not None:
        raise Refusal(
            Code.PERMISSION_DENIED,
            "permission_denied: a key with limits of its own makes sub-keys of itself only",
            param="parent_id",
        )
    if body.member_id not in (None, own.member_id):
        raise Refusal(
            Code.PERMISSION_DENIED, "permission_denied: a member makes keys of its own only"
        )
    return {"account_id": own.account_id, "member_id": own.member_id}
