"""Receipts of billed requests: found in the ledger, read from the log, signed.

The ledger says that the request was paid and where its event stands; the event says the rest, and
its bytes must be the ones that the ledger took.
"""

from typing import Any

import falcon
import msgspec
from sqlalchemy import Engine

from schemas.errors import Code
from schemas.events import Usage
from services.backends.bus.port import Bus, BusUnavailable, OffsetOutOfRange
from services.backends.receipt_keys import ReceiptKeys
from services.backends.sql.engine import DatabaseUnavailable
from services.backends.sql.settled import billed
from services.core.errors import Refusal
from services.core.receipts import receipt_of
from services.meter.dead import Poison, body_hash, read_event


class NoReceipt(LookupError):
    """The account has no billed request of that id, or the log has lost it."""


class Receipts:
    """Safe for threads."""

    def __init__(self, engine: Engine, bus: Bus, keys: ReceiptKeys) -> None:
        self._engine = engine
        self._bus = bus
        self.keys = keys

    def signed(self, account_id: str, request_id: str) -> dict[str, Any]:
        """The document. Raises NoReceipt, BusUnavailable, DatabaseUnavailable."""
        place = billed(self._engine, account_id, request_id)
        if place is None:
            raise NoReceipt(f"no billed request {request_id!r}")
        try:
            messages = list(
                self._bus.read(place.topic, place.partition, place.offset, place.offset)
            )
            event = read_event(messages[0].value)
        except (OffsetOutOfRange, Poison) as ex:
            raise NoReceipt(f"the log no longer holds {request_id!r}") from ex
        if (
            not isinstance(event, Usage)
            or body_hash(messages[0].value) != place.body_hash
            or event.charged_nano != place.charged_nano
        ):
            raise NoReceipt(f"log and ledger disagree about {request_id!r}: run reconcile")
        return self.keys.signing().sign(receipt_of(event))


class ReceiptRoute:
    """GET /v1/receipts/{request_id}; `account_of` reads the caller's account."""

    def __init__(self, receipts: Receipts, account_of: Any) -> None:
        self._receipts = receipts
        self._account_of = account_of

    def on_get(self, req: falcon.Request, resp: falcon.Response, request_id: str) -> None:
        account_id = self._account_of(req)
        try:
            resp.data = msgspec.json.encode(self._receipts.signed(account_id, request_id))
        except NoReceipt as ex:
            raise Refusal(Code.NOT_FOUND, f"not_found {ex}") from ex
        except (BusUnavailable, DatabaseUnavailable) as ex:
            raise Refusal(Code.UNAVAILABLE, "receipts cannot be made now") from ex


class ReceiptKeysRoute:
    """GET /v1/receipts/keys: public."""

    def __init__(self, receipts: Receipts) -> None:
        self._receipts = receipts

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = msgspec.json.encode(self._receipts.keys.published())
