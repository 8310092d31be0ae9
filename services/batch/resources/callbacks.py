"""Callbacks: the account's secret, what was delivered of a job, once more."""

from typing import Any

import falcon

from schemas.errors import Code
from services.backends.sql.deliveries import Deliveries, Delivery
from services.batch.callbacks import CallbackSecrets
from services.batch.resources.base import Service, answer
from services.batch.resources.jobs import own
from services.batch.wire import moment
from services.core.errors import Refusal


class SecretResource:
    """GET /v1/webhooks/secret: what callbacks of the account are signed with."""

    def __init__(self, service: Service, secrets: CallbackSecrets) -> None:
        self._service = service
        self._secrets = secrets

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        answer(resp, {"secret": self._secrets.of(self._service.caller(req).account_id)})


class DeliveriesResource:
    """GET /v1/jobs/{id}/deliveries."""

    def __init__(self, service: Service, deliveries: Deliveries) -> None:
        self._service = service
        self._deliveries = deliveries

    def on_get(self, req: falcon.Request, resp: falcon.Response, job_id: str) -> None:
        job = own(self._service, req, job_id)
        found = [delivery_view(each) for each in self._deliveries.listed(job.account_id, job.id)]
        answer(resp, {"object": "list", "data": found})


class RedeliverResource:
    """POST /v1/webhooks/deliveries/{id}/redeliver."""

    def __init__(self, service: Service, deliveries: Deliveries) -> None:
        self._service = service
        self._deliveries = deliveries

    def on_post(self, req: falcon.Request, resp: falcon.Response, delivery_id: str) -> None:
        account_id = self._service.caller(req).account_id
        if not self._deliveries.again(account_id, delivery_id):
            raise Refusal(Code.NOT_FOUND, "not_found: this account has no such delivery")
        answer(resp, {"id": delivery_id, "status": "due"}, 202)


def delivery_view(each: Delivery) -> dict[str, Any]:
    """One line of the log: the last try and the next."""
    return {
        "id": each.id,
        "type": each.type,
        "job_id": f"job_{each.job_id}" if each.job_id else None,
        "batch_id": each.batch_id or None,
        "endpoint_id": each.endpoint_id,
        "url": each.url,
        "attempts": each.tries,
        "response_status": each.status,
        "message": each.message or None,
        "created_at": moment(each.created_at),
        "delivered_at": moment(each.delivered_at),
        "next_attempt_at": moment(each.next_at),
    }
