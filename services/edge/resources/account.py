"""The account as its owner sees it: balance, wallet transactions, and the public price list."""

from typing import Any, Final

import falcon
import orjson

from services.core.access import allowed_models
from services.core.catalog import Key, Snapshot
from services.core.ids import uuid7_text
from services.core.moments import rfc3339
from services.core.money import NANO_PER_USD, exact_usd
from services.core.prices import ModelPrice
from services.edge.authenticated import Authenticated, Caller
from services.edge.headers import accounting
from services.edge.manage.transactions import transactions_page
from services.edge.worker import Worker

LOW_BALANCE_NANO: Final = 1_000_000_000
_TEXT_RATES: Final = {
    "input": "input",
    "cache_write": "cache_write_5m",
    "cache_read": "cache_read",
    "output": "output",
}


class AccountResource(Authenticated):
    """`GET /api/v1/me/account`."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._serve(req, resp, self._body)

    def _body(self, caller: Caller) -> dict[str, Any]:
        view, key = caller.view, caller.key
        account = view.account(key.account_id)
        tier = "enterprise" if account.kind == "org" else "individual"
        caps = self._worker.standings.caps(key)
        return {
            "user": {
                "id": account.id,
                "username": account.name,
                "email": None,
                "created_at": rfc3339(account.created_at),
                "tier": tier,
            },
            "balance": balance(self._worker, key),
            "allowed_models": [
                {"id": model.model} | _quota(caps.get(model.model))
                for model in allowed_models(view.snapshot, view.index, key)
            ],
            "org": _org(view.snapshot, key),
        }


class BalanceResource(Authenticated):
    """`GET /v1/balance`: the balance part of the account."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._serve(req, resp, lambda caller: balance(self._worker, caller.key))


class TransactionsResource(Authenticated):
    """`GET /api/v1/me/billing/transactions`: money in and out of the wallet, newest first.
    Spending by use never appears here."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        self._serve(
            req, resp, lambda caller: transactions_page(self._worker, req, caller.key.account_id)
        )


class PricingResource:
    """`GET /api/pricing`: the prices in force of the models that are served, USD per million
    tokens or, of generations, per million of each unit, without a key."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        snapshot = self._worker.snapshots.view().snapshot
        prices = snapshot.prices
        served = {name for channel in snapshot.channels for name in channel.models}
        resp.data = orjson.dumps(
            [
                {
                    "model": model.model,
                    "category": model.kind,
                    "vendor": model.vendor,
                    "rates": {**_rates(model), "currency": "USD"},
                    "updated_at": rfc3339(prices.effective_at),
                }
                for model in prices.book.models.values()
                if model.model in served
            ]
        )
        resp.content_type = "application/json"
        resp.set_header("x-tollgate-price-version", prices.id)
        resp.set_headers(accounting(remaining_nano=0, estimate_credits=0, request_id=uuid7_text()))


def balance(worker: Worker, key: Key) -> dict[str, Any]:
    """The wallet in USD. `available_usd` is after pending holds, rounded down to a micro-dollar;
    this worker's holds count at once, another worker's within its report interval."""
    figures = worker.threads.apply(worker.accounts.balance, (key.account_id,))
    pending_nano = worker.leases.unreported_nano(key.account_id)
    available_nano = figures.available_nano - pending_nano
    return {
        "available_usd": available_nano // 1000 / 1_000_000,
        "lifetime_topup_usd": float(exact_usd(figures.topup_nano)),
        "lifetime_spent_usd": float(exact_usd(figures.settled_nano)),
        "low_balance_threshold_usd": LOW_BALANCE_NANO / NANO_PER_USD,
        "low_balance_flagged": available_nano < LOW_BALANCE_NANO,
    }


def _quota(cap: tuple[int, int] | None) -> dict[str, float | None]:
    """(used, cap) of a model in USD, None without a cap; what is used is rounded up."""
    if cap is None:
        return {"quota_used_usd": None, "quota_cap_usd": None}
    used_nano, cap_nano = cap
    return {
        "quota_used_usd": -(-used_nano // 1000) / 1_000_000,
        "quota_cap_usd": float(exact_usd(cap_nano)),
    }


def _org(snapshot: Snapshot, key: Key) -> dict[str, str] | None:
    """The org that owns the key, and the role of the key's member in it; a key of the org itself
    acts as its owner."""
    account = snapshot.accounts[key.account_id]
    if account.kind != "org":
        return None
    member = snapshot.members.get(key.member_id or "")
    role = member.role if member is not None else "owner"
    return {"id": account.id, "name": account.name, "role": role}


def _rates(model: ModelPrice) -> dict[str, float | None]:
    if model.kind == "text":
        return {f"{name}_per_1m": _usd(model.classes.get(of)) for name, of in _TEXT_RATES.items()}
    return {f"{name}_per_1m": _usd(price) for name, price in model.classes.items()}


def _usd(nano: int | None) -> float | None:
    return None if nano is None else float(exact_usd(nano))
