"""`tollgate account`: who pays."""

import time
from typing import Any

import click

from schemas.events import MOVEMENTS
from services.backends import bonus_ladder
from services.backends.sql.accounts import Balance
from services.backends.sql.wallets import patiently
from services.cli.bootstrap import Books, open_books
from services.cli.context import Cli, Group, iso, table
from services.cli.limits import by_options, rates
from services.core.bonus import bonus_nano
from services.core.catalog import Account
from services.core.money import exact_usd, parse_usd

_PAGE_MAX = 200


@click.group(cls=Group)
def account() -> None:
    """Accounts and their wallets."""


@account.command("create")
@click.argument("name")
@click.option("--kind", type=click.Choice(["individual", "org"]), default="individual")
@rates
@click.pass_obj
def create(cli: Cli, /, name: str, kind: str, **given: Any) -> None:
    """Makes an account with an empty wallet."""
    books = open_books(cli.config())
    limits: dict[str, Any] = {each: value or 0 for each, value in given.items()}
    with by_options():
        made = books.catalog.create_account(name, kind, **limits)
    books.reach_workers()
    cli.show(
        {"id": made.id, "name": made.name, "kind": made.kind}, f"{made.id}  {made.name} ({kind})"
    )


@account.command("list")
@click.pass_obj
def list_(cli: Cli) -> None:
    """Lists accounts with what they have left."""
    books = open_books(cli.config())
    found = books.catalog.accounts()
    balances = books.accounts.balances()
    rows = [_figures(each, balances[each.id]) for each in found]
    names = ("id", "name", "status", "available_usd", "topped_up_usd", "charged_usd", "held_usd")
    cli.show(rows, table(names, [[row[name] for name in names] for row in rows]))


@account.command("show")
@click.argument("name_or_id")
@click.pass_obj
def show(cli: Cli, name_or_id: str) -> None:
    """Shows an account with its wallet and limits."""
    books = open_books(cli.config())
    row = _shown(books, books.catalog.account(name_or_id))
    cli.show(row, "\n".join(f"{name:18}{value or '-'}" for name, value in row.items()))


@account.command("update")
@click.argument("name_or_id")
@click.option("--name", help="Another name.")
@click.option("--status", type=click.Choice(["active", "paused", "disabled"]))
@rates
@click.pass_obj
def update(cli: Cli, /, name_or_id: str, **given: Any) -> None:
    """Changes what is named; the rest stays."""
    fields = {name: value for name, value in given.items() if value is not None}
    if not fields:
        raise click.UsageError("say what is to change")
    _change(cli, name_or_id, fields, "changed")


@account.command("pause")
@click.argument("name_or_id")
@click.pass_obj
def pause(cli: Cli, name_or_id: str) -> None:
    """Refuses all keys of an account with 403 until it is resumed."""
    _change(cli, name_or_id, {"status": "paused"}, "paused")


@account.command("resume")
@click.argument("name_or_id")
@click.pass_obj
def resume(cli: Cli, name_or_id: str) -> None:
    """Lets a paused or disabled account call again."""
    _change(cli, name_or_id, {"status": "active"}, "active")


@account.command("topup", context_settings={"ignore_unknown_options": True})
@click.argument("name_or_id")
@click.argument("usd")
@click.option("--bonus", is_flag=True, help="Adds the bonus of the ladder, as a second line.")
@click.option("--movement", type=click.Choice(MOVEMENTS), default="topup")
@click.option("--external-id", default="", help="Makes a repeated call move the money once.")
@click.option("--note", default="")
@click.pass_obj
def topup(
    cli: Cli,
    name_or_id: str,
    usd: str,
    bonus: bool,
    movement: str,
    external_id: str,
    note: str,
) -> None:
    """Moves USD into an account's wallet (a debit movement takes it out: write a negative USD)."""
    if not bonus:
        _move(cli, name_or_id, movement, _amount_nano(usd), external_id, note)
        return
    if movement != "topup":
        raise click.UsageError("--bonus: only a topup has one")
    config = cli.config()
    books = open_books(config)
    found = books.catalog.account(name_or_id)
    paid_nano = _amount_nano(usd)
    earned_nano = bonus_nano(bonus_ladder.load(config), paid_nano)
    try:
        ids = books.wallets.top_up(found.id, paid_nano, earned_nano, external_id, note)
    except ValueError as ex:
        raise click.UsageError(str(ex)) from ex
    shown = _shown(books, found)
    earned = exact_usd(earned_nano) if len(ids) > 1 else "0"
    cli.show(
        {"movement_id": ids[0], "movement_ids": ids, "bonus_usd": earned, **shown},
        f"topup of ${exact_usd(paid_nano)} and bonus of ${earned} ({', '.join(ids)}); "
        f"{found.name} has ${shown['available_usd']} available",
    )


@account.command("credit")
@click.argument("name_or_id")
@click.argument("usd")
@click.option("--note", required=True, help="Why.")
@click.option("--external-id", default="", help="Makes a repeated call move the money once.")
@click.pass_obj
def credit(cli: Cli, name_or_id: str, usd: str, note: str, external_id: str) -> None:
    """Gives USD to an account."""
    _move(cli, name_or_id, "admin_credit", _amount_nano(usd), external_id, note)


@account.command("debit")
@click.argument("name_or_id")
@click.argument("usd")
@click.option("--note", required=True, help="Why.")
@click.option("--external-id", default="", help="Makes a repeated call move the money once.")
@click.pass_obj
def debit(cli: Cli, name_or_id: str, usd: str, note: str, external_id: str) -> None:
    """Takes USD from an account, never what is spent or held by requests."""
    _move(cli, name_or_id, "admin_debit", -_amount_nano(usd), external_id, note)


@account.command("transactions")
@click.argument("name_or_id")
@click.option("--kind", type=click.Choice(MOVEMENTS))
@click.option("--page", type=click.IntRange(min=1), default=1)
@click.option("--page-size", type=click.IntRange(min=1, max=_PAGE_MAX), default=50)
@click.pass_obj
def transactions(cli: Cli, name_or_id: str, kind: str | None, page: int, page_size: int) -> None:
    """Lists what went into and out of a wallet, newest first. Usage is no transaction."""
    books = open_books(cli.config())
    found = books.catalog.account(name_or_id)
    moved, _ = books.accounts.transactions(found.id, kind, None, None, page, page_size)
    rows = [
        {
            "id": row.id,
            "created_at": iso(row.created_at),
            "kind": row.movement,
            "amount_usd": exact_usd(row.amount_nano),
            "balance_after_usd": exact_usd(row.balance_after_nano),
            "external_id": row.external_id or None,
            "actor": row.actor,
            "note": row.note or None,
        }
        for row in moved
    ]
    names = ("created_at", "kind", "amount_usd", "balance_after_usd", "actor", "note")
    cli.show(rows, table(names, [[row[name] for name in names] for row in rows]))


def _change(cli: Cli, name_or_id: str, fields: dict[str, Any], word: str) -> None:
    books = open_books(cli.config())
    found = books.catalog.account(name_or_id)
    with by_options():
        changed = books.catalog.update_account(found.id, **fields)
    books.reach_workers()
    cli.show(_shown(books, changed), f"{changed.name} is {word}")


def _move(
    cli: Cli, name_or_id: str, movement: str, amount_nano: int, external_id: str, note: str
) -> None:
    books = open_books(cli.config())
    found = books.catalog.account(name_or_id)
    try:
        moved = patiently(
            lambda: books.wallets.move(found.id, movement, amount_nano, external_id, note),
            lambda: books.wallets.recall(found.id),
            time.sleep,
        )
    except ValueError as ex:
        raise click.UsageError(str(ex)) from ex
    shown = _shown(books, found)
    cli.show(
        {"movement_id": moved, **shown},
        f"{movement} of ${exact_usd(amount_nano)} ({moved}); "
        f"{found.name} has ${shown['available_usd']} available",
    )


def _amount_nano(usd: str) -> int:
    try:
        return parse_usd(usd)
    except ValueError as ex:
        raise click.UsageError(str(ex)) from ex


def _shown(books: Books, found: Account) -> dict[str, Any]:
    return _figures(found, books.accounts.balance(found.id))


def _figures(found: Account, balance: Balance) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "kind": found.kind,
        "status": found.status,
        "concurrency": found.concurrency,
        "requests_per_min": found.requests_per_min,
        "tokens_per_min": found.tokens_per_min,
        "available_usd": exact_usd(balance.available_nano),
        "topped_up_usd": exact_usd(balance.limit_nano),
        "charged_usd": exact_usd(balance.settled_nano),
        "held_usd": exact_usd(balance.pending_nano),
    }
