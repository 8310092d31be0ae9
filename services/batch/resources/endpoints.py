"""`/v1/webhooks/endpoints`: URLs of the account that are told of all its jobs."""

import threading
from typing import Annotated, Any, Final, Literal

import falcon
import msgspec

from schemas.errors import Code
from services.backends.sql.deliveries import Deliveries
from services.backends.sql.endpoints import (
    ENDPOINTS_MAX,
    Endpoint,
    Endpoints,
    TooMany,
    UrlTaken,
)
from services.batch.callbacks import CallbackSecrets
from services.batch.cursors import decode_cursor, encode_cursor
from services.batch.receivers import Receivers
from services.batch.resources.base import Service, answer, decode, read_body
from services.batch.resources.callbacks import delivery_view
from services.batch.wire import moment
from services.core.errors import InvalidRequest, Refusal
from services.core.ids import new_id
from services.core.netguard import UrlRefused, check_url
from services.core.webhooks import ENDS, EVENTS, TEST, delivered

_PAGE_MAX: Final = 200
_TESTS_MAX: Final = 2  # at once: each keeps a thread that calls need
_Url = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
_Text = Annotated[str, msgspec.Meta(max_length=256)]
_Events = Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=len(EVENTS))]


class _New(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    url: _Url
    events: _Events = ENDS
    description: _Text = ""


class _Change(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    url: _Url | msgspec.UnsetType = msgspec.UNSET
    events: _Events | msgspec.UnsetType = msgspec.UNSET
    description: _Text | msgspec.UnsetType = msgspec.UNSET
    status: Literal["active", "disabled"] | msgspec.UnsetType = msgspec.UNSET


class EndpointsResource:
    """POST and GET /v1/webhooks/endpoints. The secret is shown to who makes it."""

    def __init__(self, service: Service, endpoints: Endpoints, secrets: CallbackSecrets) -> None:
        self._service = service
        self._endpoints = endpoints
        self._secrets = secrets

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        account_id = self._service.caller(req).account_id
        asked = decode(read_body(req), _New)
        _check(asked.url, asked.events, asked.description)
        try:
            made = self._endpoints.add(
                account_id, asked.url, sorted(set(asked.events)), asked.description
            )
        except UrlTaken as ex:
            raise _taken() from ex
        except TooMany as ex:
            raise Refusal(
                Code.CONFLICT, f"an account has {ENDPOINTS_MAX} endpoints at most"
            ) from ex
        answer(resp, _view(made) | {"secret": self._secrets.of_endpoint(made)}, 201)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        found = self._endpoints.listed(self._service.caller(req).account_id)
        answer(resp, {"object": "list", "data": [_view(each) for each in found], "has_more": False})


class EndpointResource:
    """GET, PATCH and DELETE /v1/webhooks/endpoints/{id}, POST /rotate, POST /test (one message, at
    once, without a trace), GET /deliveries."""

    def __init__(
        self,
        service: Service,
        endpoints: Endpoints,
        deliveries: Deliveries,
        secrets: CallbackSecrets,
        receivers: Receivers,
    ) -> None:
        self._service = service
        self._endpoints = endpoints
        self._deliveries = deliveries
        self._secrets = secrets
        self._receivers = receivers
        self._tests = threading.BoundedSemaphore(_TESTS_MAX)

    def on_get(self, req: falcon.Request, resp: falcon.Response, endpoint_id: str) -> None:
        answer(resp, _view(self._own(req, endpoint_id)))

    def on_patch(self, req: falcon.Request, resp: falcon.Response, endpoint_id: str) -> None:
        account_id = self._service.caller(req).account_id
        asked = decode(read_body(req), _Change)
        changes: dict[str, Any] = msgspec.structs.asdict(asked)
        changes = {name: value for name, value in changes.items() if value is not msgspec.UNSET}
        _check(changes.get("url"), changes.get("events", ()), changes.get("description", ""))
        if "events" in changes:
            changes["events"] = sorted(set(changes["events"]))
        try:
            found = self._endpoints.change(account_id, endpoint_id, **changes)
        except UrlTaken as ex:
            raise _taken() from ex
        answer(resp, _view(_there(found)))

    def on_delete(self, req: falcon.Request, resp: falcon.Response, endpoint_id: str) -> None:
        account_id = self._service.caller(req).account_id
        if not self._endpoints.delete(account_id, endpoint_id):
            raise _unknown()
        answer(resp, {"id": endpoint_id, "object": "webhook_endpoint", "deleted": True})

    def on_post_rotate(self, req: falcon.Request, resp: falcon.Response, endpoint_id: str) -> None:
        account_id = self._service.caller(req).account_id
        found = _there(self._endpoints.rotate(account_id, endpoint_id))
        answer(resp, _view(found) | {"secret": self._secrets.of_endpoint(found)})

    def on_post_test(self, req: falcon.Request, resp: falcon.Response, endpoint_id: str) -> None:
        found = self._own(req, endpoint_id)
        clock, message_id = self._service.parts.clock, new_id("whd")
        body = {
            "type": TEST,
            "timestamp": moment(clock.now_us()),
            "data": {"object": "webhook_endpoint", "id": found.id},
        }
        if not self._tests.acquire(blocking=False):
            raise Refusal(Code.RATE_LIMIT_EXCEEDED, "too many tests run now", retry_after_s=5)
        try:
            secrets = self._secrets.signing(found, clock.now_us())
            told = self._receivers.send(found.url, secrets, message_id, msgspec.json.encode(body))
        finally:
            self._tests.release()
        answer(
            resp,
            {
                "object": "webhook_test",
                "id": message_id,
                "delivered": delivered(told.status),
                "response_status": told.status,
                "message": told.message or None,
            },
        )

    def on_get_deliveries(
        self, req: falcon.Request, resp: falcon.Response, endpoint_id: str
    ) -> None:
        self._own(req, endpoint_id)
        signer = self._service.signer
        limit = req.get_param_as_int("limit", min_value=1, max_value=_PAGE_MAX) or 20
        after = decode_cursor(signer, req.get_param("cursor"))
        found = self._deliveries.sent_to(endpoint_id, limit + 1, after)
        page, last = found[:limit], found[limit - 1] if len(found) > limit else None
        answer(
            resp,
            {
                "object": "list",
                "data": [delivery_view(each) for each in page],
                "has_more": last is not None,
                "next_cursor": encode_cursor(signer, last.created_at, last.id) if last else None,
            },
        )

    def _own(self, req: falcon.Request, endpoint_id: str) -> Endpoint:
        return _there(self._endpoints.get(self._service.caller(req).account_id, endpoint_id))


def _check(url: str | None, events: tuple[str, ...], description: str) -> None:
    if "\0" in description:
        raise InvalidRequest("description: must not hold NUL", param="description")
    if url is not None:
        try:
            check_url(url)
        except UrlRefused as ex:
            raise InvalidRequest(f"url: {ex}", param="url") from ex
    for each in events:
        if each not in EVENTS:
            message = f"events: {each!r} is none of {', '.join(EVENTS)}"
            raise InvalidRequest(message, param="events")


def _view(each: Endpoint) -> dict[str, Any]:
    return {
        "id": each.id,
        "object": "webhook_endpoint",
        "url": each.url,
        "events": each.events,
        "description": each.description,
        "status": each.status,
        "disabled_reason": each.reason or None,
        "failing_since": moment(each.failing_at),
        "created_at": moment(each.created_at),
        "updated_at": moment(each.updated_at),
    }


def _there(found: Endpoint | None) -> Endpoint:
    if found is None:
        raise _unknown()
    return found


def _unknown() -> Refusal:
    return Refusal(Code.NOT_FOUND, "not_found: this account has no such webhook endpoint")


def _taken() -> Refusal:
    return Refusal(Code.CONFLICT, "this account has an endpoint of that URL already", param="url")
