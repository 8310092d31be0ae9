"""The routes of the management API."""

import falcon

from services.edge.manage.accounts import (
    AccountResource,
    AccountsResource,
    AccountStatusResource,
    AccountTransactionsResource,
    AdjustmentResource,
    TopUpResource,
)
from services.edge.manage.desk import Desk
from services.edge.manage.groups import GroupsResource
from services.edge.manage.keys import (
    KeyResource,
    KeysResource,
    RevealResource,
    RotateResource,
    StatusResource,
)
from services.edge.manage.orgs import (
    AllowedModelsResource,
    MemberResource,
    MembersResource,
    OrgResource,
)
from services.edge.worker import Worker

ROUTES = {
    "/api/v1/keys": KeysResource,
    "/api/v1/keys/{key_id}": KeyResource,
    "/api/v1/keys/{key_id}/reveal": RevealResource,
    "/api/v1/keys/{key_id}/rotate": RotateResource,
    "/api/v1/keys/{key_id}/disable": StatusResource,
    "/api/v1/keys/{key_id}/enable": StatusResource,
    "/api/v1/groups/available": GroupsResource,
    "/api/v1/orgs/{org_id}": OrgResource,
    "/api/v1/orgs/{org_id}/members": MembersResource,
    "/api/v1/orgs/{org_id}/members/allowed-models": AllowedModelsResource,
    "/api/v1/orgs/{org_id}/members/{member_id}": MemberResource,
    "/api/v1/accounts": AccountsResource,
    "/api/v1/accounts/{account_id}": AccountResource,
    "/api/v1/accounts/{account_id}/pause": AccountStatusResource,
    "/api/v1/accounts/{account_id}/resume": AccountStatusResource,
    "/api/v1/accounts/{account_id}/topup": TopUpResource,
    "/api/v1/accounts/{account_id}/credit": AdjustmentResource,
    "/api/v1/accounts/{account_id}/debit": AdjustmentResource,
    "/api/v1/accounts/{account_id}/transactions": AccountTransactionsResource,
}


def add_routes(app: falcon.App, worker: Worker, desk: Desk) -> None:
    for path, resource in ROUTES.items():
        app.add_route(path, resource(worker, desk))
