"""`tollgate account`: who pays."""

from typing import Any

import click

from schemas.events import MOVEMENTS
from services.cli.bootstrap import Books, open_books
from services.cli.context import Cli, Group, table
from services.core.catalog import Account
from services.core.money import exact_usd, parse_usd


@click.group(cls=Group)
def account() -> None:
    """Accounts and their wallets."""


@account.command("create")
@click.argument("name")
@click.option("--kind", type=click.Choice(["individual", "org"]), default="individual")
@click.pass_obj
def create(cli: Cli, name: str, kind: str) -> None:
    """Makes an account with an empty wallet."""
    made = open_books(cli.config()).catalog.create_account(name, kind)
    cli.show(
        {"id": made.id, "name": made.name, "kind": made.kind}, f"{made.id}  {made.name} ({kind})"
    )


@account.command("topup", context_settings={"ignore_unknown_options": True})
@click.argument("name_or_id")
@click.argument("usd")
@click.option("--movement", type=click.Choice(MOVEMENTS), default="topup")
@click.option("--external-id", default="", help="Makes a repeated call move the money once.")
@click.option("--note", default="")
@click.pass_obj
def topup(cli: Cli, name_or_id: str, usd: str, movement: str, external_id: str, note: str) -> None:
    """Moves USD into an account's wallet (a debit movement takes it out: write a negative USD)."""
    books = open_books(cli.config())
    found = books.catalog.account(name_or_id)
    try:
        amount_nano = parse_usd(usd)
        moved = books.wallets.move(found.id, movement, amount_nano, external_id, note)
    except ValueError as ex:
        raise click.UsageError(str(ex)) from ex
    shown = _shown(books, found)
    cli.show(
        {"movement_id": moved, **shown},
        f"{movement} of ${exact_usd(amount_nano)} ({moved}); "
        f"{found.name} has ${shown['available_usd']} available",
    )


@account.command("list")
@click.pass_obj
def list_(cli: Cli) -> None:
    """Lists accounts with what they have left."""
    books = open_books(cli.config())
    rows = [_shown(books, found) for found in books.catalog.accounts()]
    names = ("id", "name", "status", "available_usd", "topped_up_usd", "charged_usd", "held_usd")
    cli.show(rows, table(names, [[row[name] for name in names] for row in rows]))


def _shown(books: Books, found: Account) -> dict[str, Any]:
    balance = books.accounts.balance(found.id)
    return {
        "id": found.id,
        "name": found.name,
        "kind": found.kind,
        "status": found.status,
        "available_usd": exact_usd(balance.available_nano),
        "topped_up_usd": exact_usd(balance.limit_nano),
        "charged_usd": exact_usd(balance.settled_nano),
        "held_usd": exact_usd(balance.pending_nano),
    }
