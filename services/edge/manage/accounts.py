"""`/api/v1/accounts`: the operator's side of accounts and their wallets."""

from collections.abc import Callable
from typing import Any

import falcon
import gevent
from msgspec import UNSET

from schemas.management import Adjustment, CreateAccount, TopUp, UpdateAccount
from services.backends.sql.wallets import patiently
from services.core.bonus import bonus_nano
from services.core.catalog import Account
from services.edge.manage.bodies import amount
from services.edge.manage.desk import Manager, not_found, require_operator
from services.edge.manage.managed import Managed, page_of
from services.edge.manage.shapes import account_body, usd
from services.edge.manage.transactions import transactions_page

_SETTINGS = ("status", "concurrency", "requests_per_min", "tokens_per_min")


class _Accounts(Managed):
    def _operate(
        self, req: falcon.Request, resp: falcon.Response, act: Callable[[str], Any]
    ) -> None:
        """As `_manage`, for the operator alone; `act` gets the name of the actor."""

        def operated(manager: Manager) -> Any:
            require_operator(manager)
            return act(manager.actor)

        self._manage(req, resp, operated)

    def _account(self, account_id: str) -> Account:
        found: Account = self._sql(self._desk.catalog.account, account_id)
        if found.id != account_id:
            raise not_found("account", account_id)
        return found

    def _shown(self, account: Account) -> dict[str, Any]:
        return account_body(account, self._sql(self._worker.accounts.balance, account.id))

    def _set(self, account_id: str, actor: str, fields: dict[str, Any]) -> Account:
        found = self._account(account_id)
        if fields:
            found = self._sql(self._desk.catalog.update_account, account_id, actor=actor, **fields)
        return found


class AccountsResource(_Accounts):
    """`GET` and `POST /api/v1/accounts`."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        def listed(actor: str) -> dict[str, Any]:
            read = self._desk.catalog.accounts_page
            page, told = page_of(req, lambda limit, offset: self._sql(read, limit, offset))
            return {"items": [self._shown(account) for account in page], **told}

        self._operate(req, resp, listed)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        def create(actor: str) -> dict[str, Any]:
            body = self._body(req, CreateAccount)
            made = self._sql(
                self._desk.catalog.create_account,
                body.name,
                body.kind,
                concurrency=body.concurrency,
                requests_per_min=body.requests_per_min,
                tokens_per_min=body.tokens_per_min,
                actor=actor,
            )
            resp.status = 201
            return self._shown(made)

        self._operate(req, resp, create)


class AccountResource(_Accounts):
    """`GET` and `PUT` (or `PATCH`) of one account."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: str) -> None:
        self._operate(req, resp, lambda actor: self._shown(self._account(account_id)))

    def on_put(self, req: falcon.Request, resp: falcon.Response, account_id: str) -> None:
        def change(manager: Manager) -> dict[str, Any]:
            require_operator(manager)
            body = self._body(req, UpdateAccount)
            fields = {
                name: value for name in _SETTINGS if (value := getattr(body, name)) is not UNSET
            }
            return self._shown(self._set(account_id, manager.actor, fields))

        self._change(req, resp, change)

    on_patch = on_put


class AccountStatusResource(_Accounts):
    """`POST /api/v1/accounts/{id}/pause` and `/resume`."""

    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: str) -> None:
        status = "paused" if req.path.endswith("/pause") else "active"

        def switch(manager: Manager) -> dict[str, Any]:
            require_operator(manager)
            return self._shown(self._set(account_id, manager.actor, {"status": status}))

        self._change(req, resp, switch)


class TopUpResource(_Accounts):
    """`POST /api/v1/accounts/{id}/topup`: money that was paid, and its bonus as a second line."""

    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: str) -> None:
        def top_up(actor: str) -> dict[str, Any]:
            body = self._body(req, TopUp)
            paid_nano = amount(body.amount, "amount")
            earned_nano = bonus_nano(self._desk.ladder, paid_nano) if body.bonus else 0
            found = self._account(account_id)
            ids = self._sql(
                self._desk.wallets.top_up,
                account_id,
                paid_nano,
                earned_nano,
                body.external_id,
                body.note,
                actor,
            )
            return {
                "movement_ids": ids,
                "amount_usd": usd(paid_nano),
                "bonus_usd": usd(earned_nano) if len(ids) > 1 else 0.0,
                "account": self._shown(found),
            }

        self._operate(req, resp, top_up)


class AdjustmentResource(_Accounts):
    """`POST /api/v1/accounts/{id}/credit` and `/debit`, each with a note. A debit never takes what
    is spent or held by requests; idle money of the workers is called back for it."""

    def on_post(self, req: falcon.Request, resp: falcon.Response, account_id: str) -> None:
        debit = req.path.endswith("/debit")

        def adjust(actor: str) -> dict[str, Any]:
            body = self._body(req, Adjustment)
            nano = amount(body.amount, "amount")
            found = self._account(account_id)
            moved = patiently(
                lambda: self._sql(
                    self._desk.wallets.move,
                    account_id,
                    "admin_debit" if debit else "admin_credit",
                    -nano if debit else nano,
                    body.external_id,
                    body.note,
                    actor,
                ),
                lambda: self._sql(self._desk.wallets.recall, account_id),
                gevent.sleep,
            )
            signed = usd(-nano if debit else nano)
            return {"movement_id": moved, "amount_usd": signed, "account": self._shown(found)}

        self._operate(req, resp, adjust)


class AccountTransactionsResource(_Accounts):
    """`GET /api/v1/accounts/{id}/transactions`: as the account's owner sees them."""

    def on_get(self, req: falcon.Request, resp: falcon.Response, account_id: str) -> None:
        def listed(actor: str) -> dict[str, Any]:
            self._account(account_id)
            return transactions_page(self._worker, req, account_id)

        self._operate(req, resp, listed)
