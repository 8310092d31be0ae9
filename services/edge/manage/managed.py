"""The way of every management route: who calls, what the body says, what the catalog answers."""

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import falcon
import gevent

from schemas.errors import Code
from services.backends.sql.catalog import AlreadyInCatalog, NotInCatalog
from services.backends.sql.catalog_readers import wait_for_readers
from services.backends.sql.outbox import Origin, coming_from
from services.backends.sql.wallets import InsufficientFunds, MovementConflict, WrongMovement
from services.core.access import credentials
from services.core.errors import InvalidRequest, Refusal
from services.core.ids import uuid7_text
from services.core.routing import ModelIndex
from services.edge.authenticated import Authenticated, Caller, fill
from services.edge.body import read_body
from services.edge.headers import accounting, client_headers
from services.edge.manage.bodies import Shape, on_the_wire, parsed
from services.edge.manage.desk import OPERATOR, Desk, Manager
from services.edge.worker import Worker

P = ParamSpec("P")
T = TypeVar("T")

BODY_MAX_BYTES: Final = 1024 * 1024
_USER_AGENT_MAX: Final = 256
PAGE_SIZE: Final = 50
PAGE_SIZE_MAX: Final = 200


class Managed(Authenticated):
    """A resource of the management API."""

    def __init__(self, worker: Worker, desk: Desk) -> None:
        super().__init__(worker)
        self._desk = desk

    def _manage(
        self, req: falcon.Request, resp: falcon.Response, act: Callable[[Manager], Any]
    ) -> None:
        """Answers with what `act` returns as JSON, for the operator or the holder of a key."""
        if "\0" in req.path or "%00" in req.query_string:  # a database takes no text with it
            act = _no_such_name
        act = self._told(req, act)
        query = {"key": req.get_param("key") or ""}
        offered = credentials(client_headers(req.env), query)
        if any(map(self._desk.admin_key.matches, offered)):
            request_id = uuid7_text()
            fill(resp, partial(_translated, act, OPERATOR), request_id)
            resp.set_headers(
                accounting(remaining_nano=0, estimate_credits=0, request_id=request_id)
            )
        else:
            self._serve(req, resp, lambda caller: _translated(act, self._manager(caller)))

    def _manager(self, caller: Caller) -> Manager:
        key = caller.key
        if key.member_id is None:
            return Manager(key.id, key)
        member = caller.view.snapshot.members.get(key.member_id)
        role = member.role if member is not None else "member"
        if role != "admin":
            return Manager(key.id, key, role)
        return Manager(key.id, key, role, self._sql(self._desk.catalog.owners, key.account_id))

    def _change(
        self, req: falcon.Request, resp: falcon.Response, act: Callable[[Manager], Any]
    ) -> None:
        """As `_manage`; the answer waits until the workers act on the change."""

        def changed(manager: Manager) -> Any:
            body = act(manager)
            readers = self._desk.readers
            version = self._sql(readers.version)
            wait_for_readers(lambda: self._sql(readers.behind, version), gevent.sleep)
            return body

        self._manage(req, resp, changed)

    def _body(self, req: falcon.Request, shape: type[Shape]) -> Shape:
        """The request's body. Raises InvalidRequest with the path of the wrong field."""
        timeout_s = self._worker.config.edge.body_timeout_s
        return parsed(read_body(req.env, BODY_MAX_BYTES, timeout_s), shape)

    def _sql(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`fn` off the hub; what it audits tells where the call comes from."""
        return self._worker.threads.apply(partial(copy_context().run, partial(fn, *args, **kwargs)))

    def _told(self, req: falcon.Request, act: Callable[[Manager], T]) -> Callable[[Manager], T]:
        ip = self._worker.snapshots.current.client_address(req.env)
        origin = Origin(ip, (req.user_agent or "")[:_USER_AGENT_MAX])

        def told(manager: Manager) -> T:
            with coming_from(origin):
                return act(manager)

        return told

    @property
    def _index(self) -> ModelIndex:
        return self._worker.snapshots.current.index


def page_of(
    req: falcon.Request, part: Callable[[int, int], tuple[list[T], int]]
) -> tuple[list[T], dict[str, int]]:
    """What `page` and `page_size` ask for, and what says so in the answer. `part(limit, offset)`
    reads it, and how many there are in all."""
    page = number(req, "page", 1, 1_000_000)
    size = number(req, "page_size", PAGE_SIZE, PAGE_SIZE_MAX)
    rows, total = part(size, (page - 1) * size)
    return rows, {"total": total, "page": page, "page_size": size}


def number(req: falcon.Request, name: str, default: int, largest: int) -> int:
    """A query parameter from 1 to `largest`. Raises InvalidRequest."""
    text = req.get_param(name)
    if text is None:
        return default
    short = len(text) <= len(str(largest)) and text.isascii() and text.isdecimal()
    if not short or not 1 <= int(text) <= largest:
        raise InvalidRequest(f"{name} must be a number from 1 to {largest}", param=name)
    return int(text)


def _no_such_name(manager: Manager) -> None:
    raise InvalidRequest("a NUL is part of no name")


def _translated(act: Callable[[Manager], T], manager: Manager) -> T:
    """`act(manager)`, what the catalog refuses as the refusal that goes out."""
    try:
        return act(manager)
    except InvalidRequest as ex:
        raise on_the_wire(ex) from ex
    except NotInCatalog as ex:
        raise Refusal(Code.NOT_FOUND, f"not_found: {ex}") from ex
    except (AlreadyInCatalog, MovementConflict) as ex:
        raise Refusal(Code.CONFLICT, f"conflict: {ex}") from ex
    except WrongMovement as ex:
        raise InvalidRequest(f"{ex.param}: {ex}", param=ex.param) from ex
    except InsufficientFunds as ex:
        raise Refusal(Code.INSUFFICIENT_BALANCE, f"insufficient_balance: {ex}") from ex
