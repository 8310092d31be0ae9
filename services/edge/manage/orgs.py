"""`/api/v1/orgs/{id}`: an org and its members: roles, allotments, allowed models, caps."""

from functools import partial
from typing import Any

import falcon

from schemas.errors import Code
from schemas.management import AllowedModels, CreateMember, UpdateMember
from services.core.catalog import Account, Member
from services.core.errors import Refusal
from services.edge.manage.bodies import granted, member_fields
from services.edge.manage.desk import Manager, not_found
from services.edge.manage.managed import Managed, page_of
from services.edge.manage.shapes import account_body, member_body, usd


class _Org(Managed):
    def _org(self, manager: Manager, org_id: str) -> Account:
        """The org, for the operator and for its owners and admins. Raises Refusal."""
        if manager.key is not None and manager.key.account_id != org_id:
            raise not_found("org", org_id)
        org: Account = self._sql(self._desk.catalog.account, org_id)
        if org.kind != "org" or org.id != org_id:
            raise not_found("org", org_id)
        if not manager.manages_account:
            raise Refusal(
                Code.PERMISSION_DENIED,
                "permission_denied: this needs an owner's or admin's key without limits of its own",
            )
        return org

    def _member(self, org_id: str, member_id: str) -> Member:
        found: Member = self._sql(self._desk.catalog.member, member_id)
        if found.account_id != org_id:
            raise not_found("member", member_id)
        return found


class OrgResource(_Org):
    """`GET /api/v1/orgs/{id}`."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, org_id: str) -> None:
        def get(manager: Manager) -> dict[str, Any]:
            org = self._org(manager, org_id)
            _, members = self._sql(self._desk.catalog.members_page, org_id, 0, 0)
            balance = self._sql(self._worker.accounts.balance, org_id)
            return {**account_body(org, balance), "members": members}

        self._manage(req, resp, get)


class MembersResource(_Org):
    """`GET` and `POST /api/v1/orgs/{id}/members`. A new member has no models until some are
    granted."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, org_id: str) -> None:
        def listed(manager: Manager) -> dict[str, Any]:
            self._org(manager, org_id)
            read = partial(self._desk.catalog.members_page, org_id)
            page, told = page_of(req, lambda limit, offset: self._sql(read, limit, offset))
            return {"items": [member_body(member) for member in page], **told}

        self._manage(req, resp, listed)

    def on_post(self, req: falcon.Request, resp: falcon.Response, org_id: str) -> None:
        def create(manager: Manager) -> dict[str, Any]:
            self._org(manager, org_id)
            body = self._body(req, CreateMember)
            fields = member_fields(body, self._index)
            _check_role(manager, None, fields)
            made = self._sql(
                self._desk.catalog.create_member, org_id, actor=manager.actor, **fields
            )
            resp.status = 201
            return member_body(made)

        self._change(req, resp, create)


class MemberResource(_Org):
    """`GET`, `PUT` (or `PATCH`), `DELETE` of one member. A removed member is disabled and its keys
    are revoked; it stays listed, for its usage does."""

    def on_get(
        self, req: falcon.Request, resp: falcon.Response, org_id: str, member_id: str
    ) -> None:
        def get(manager: Manager) -> dict[str, Any]:
            self._org(manager, org_id)
            member = self._member(org_id, member_id)
            limits = [member.quota_limit_id, *member.cap_limit_ids.values()]
            states = self._sql(self._worker.accounts.limit_states, org_id, limits)
            used = {state.limit_id: usd(state.settled_nano) for state in states}
            caps_used = {
                model: used.get(limit, 0.0) for model, limit in member.cap_limit_ids.items()
            }
            return {
                **member_body(member),
                "quota_used": used.get(member.quota_limit_id, 0.0),
                "model_caps_used": caps_used,
            }

        self._manage(req, resp, get)

    def on_put(
        self, req: falcon.Request, resp: falcon.Response, org_id: str, member_id: str
    ) -> None:
        def change(manager: Manager) -> dict[str, Any]:
            self._org(manager, org_id)
            body = self._body(req, UpdateMember)
            member = self._member(org_id, member_id)
            fields = member_fields(body, self._index)
            if isinstance(body.status, str):
                fields["status"] = body.status
            _check_role(manager, member, fields)
            if fields:
                member = self._sql(
                    self._desk.catalog.update_member, member_id, actor=manager.actor, **fields
                )
            return member_body(member)

        self._change(req, resp, change)

    on_patch = on_put

    def on_delete(
        self, req: falcon.Request, resp: falcon.Response, org_id: str, member_id: str
    ) -> None:
        def remove(manager: Manager) -> None:
            self._org(manager, org_id)
            _check_role(manager, self._member(org_id, member_id), {"status": "disabled"})
            self._sql(self._desk.catalog.remove_member, member_id, actor=manager.actor)
            resp.status = 204

        self._change(req, resp, remove)


class AllowedModelsResource(_Org):
    """`PUT /api/v1/orgs/{id}/members/allowed-models`: the same for many members at once, for all
    without `member_ids`: of an admin, all but the owners."""

    def on_put(self, req: falcon.Request, resp: falcon.Response, org_id: str) -> None:
        def change(manager: Manager) -> dict[str, Any]:
            self._org(manager, org_id)
            body = self._body(req, AllowedModels)
            models = granted(body.models, self._index)
            chosen = body.member_ids
            if manager.role != "owner":
                chosen = self._below_owners(org_id, chosen)
            changed = self._sql(
                self._desk.catalog.grant_models, org_id, models, chosen, actor=manager.actor
            )
            return {"items": [member_body(member) for member in changed]}

        self._change(req, resp, change)

    def _below_owners(self, org_id: str, member_ids: list[str] | None) -> list[str]:
        """Raises Refusal when an owner is named."""
        owners = self._sql(self._desk.catalog.owners, org_id)
        if member_ids is None:
            members: list[Member] = self._sql(self._desk.catalog.members, org_id)
            return [each.id for each in members if each.id not in owners]
        if owners & set(member_ids):
            raise _owners_only()
        return member_ids


def _check_role(manager: Manager, member: Member | None, fields: dict[str, Any]) -> None:
    """Owners are made and changed by owners and the operator only. Raises Refusal."""
    touches_owner = fields.get("role") == "owner" or (
        member is not None and member.role == "owner" and fields
    )
    if touches_owner and manager.role != "owner":
        raise _owners_only()


def _owners_only() -> Refusal:
    return Refusal(
        Code.PERMISSION_DENIED, "permission_denied: only an owner makes or changes an owner"
    )
