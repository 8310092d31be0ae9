"""`tollgate org`: accounts with members."""

from typing import Any

import click

from services.cli.bootstrap import Books, open_books
from services.cli.context import Cli, Group, table
from services.cli.limits import rates
from services.core.catalog import Account
from services.core.money import exact_usd


@click.group(cls=Group)
def org() -> None:
    """Organizations: accounts whose wallet is shared by members."""


@org.command("create")
@click.argument("name")
@rates
@click.pass_obj
def create(cli: Cli, /, name: str, **given: Any) -> None:
    """Makes an org with an empty wallet and without members."""
    books = open_books(cli.config())
    limits: dict[str, Any] = {each: value or 0 for each, value in given.items()}
    made = books.catalog.create_account(name, "org", **limits)
    books.reach_workers()
    cli.show(_shown(books, made), f"{made.id}  {made.name} (org)")


@org.command("list")
@click.pass_obj
def list_(cli: Cli) -> None:
    """Lists orgs with their members and what they have left."""
    books = open_books(cli.config())
    rows = [_shown(books, each) for each in books.catalog.accounts() if each.kind == "org"]
    names = ("id", "name", "status", "members", "available_usd")
    cli.show(rows, table(names, [[row[name] for name in names] for row in rows]))


def _shown(books: Books, found: Account) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "kind": found.kind,
        "status": found.status,
        "members": len(books.catalog.members(found.id)),
        "available_usd": exact_usd(books.accounts.balance(found.id).available_nano),
    }
