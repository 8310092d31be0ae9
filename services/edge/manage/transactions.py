"""Movements of a wallet, as `/api/v1/me/billing/transactions` and the operator list them."""

from datetime import UTC, datetime
from typing import Any

import falcon

from schemas.events import MOVEMENTS
from services.core.errors import InvalidRequest
from services.edge.manage.managed import PAGE_SIZE, PAGE_SIZE_MAX, number
from services.edge.manage.shapes import transaction_body
from services.edge.worker import Worker

_LATEST_S = 7_258_118_400  # the year 2200


def transactions_page(worker: Worker, req: falcon.Request, account_id: str) -> dict[str, Any]:
    """One page, newest first, by the parameters `page`, `page_size`, `kind`, `since` (inclusive)
    and `until` (exclusive). Raises InvalidRequest."""
    page = number(req, "page", 1, 1_000_000)
    size = number(req, "page_size", PAGE_SIZE, PAGE_SIZE_MAX)
    kind = req.get_param("kind")
    if kind is not None and kind not in MOVEMENTS:
        raise InvalidRequest(f"kind must be one of {', '.join(MOVEMENTS)}", param="kind")
    rows, total = worker.threads.apply(
        worker.accounts.transactions,
        (account_id, kind, _time(req, "since"), _time(req, "until"), page, size),
    )
    items = [transaction_body(row) for row in rows]
    return {"items": items, "total": total, "page": page, "page_size": size}


def _time(req: falcon.Request, name: str) -> int | None:
    """A time parameter (RFC 3339, a date, or Unix seconds) as microseconds."""
    text = req.get_param(name)
    if text is None:
        return None
    try:
        if text.isascii() and text.isdecimal():
            seconds = float(min(int(text), _LATEST_S))
        else:
            at = datetime.fromisoformat(text.replace(" ", "+"))
            seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as ex:
        raise InvalidRequest(f"{name} is not a time", param=name) from ex
    return int(seconds * 1_000_000)
