"""`tollgate member`: who shares an org's wallet, and what of it."""

from typing import Any

import click

from services.cli.bootstrap import Books, open_books
from services.cli.context import Cli, Group, table
from services.cli.limits import (
    EVERY_MODEL,
    by_options,
    limit_text,
    models_of,
    money,
    rate,
    usd,
)
from services.core.catalog import Member

_ROLES = click.Choice(["owner", "admin", "member"])
_MODEL_HELP = "May be repeated; all: every model, none: no model."


@click.group(cls=Group)
def member() -> None:
    """Members of organizations."""


@member.command("add")
@click.option("--org", required=True, help="Name or id of the org.")
@click.option("--name", required=True, help="Unique in the org.")
@click.option("--email", default="")
@click.option("--role", type=_ROLES, default="member", show_default=True)
@click.option("--model", "models", multiple=True, help=_MODEL_HELP)
@money("--quota", "What the member may spend: the allotment.")
@rate("--concurrency", "concurrency", "Requests at once.")
@click.pass_obj
def add(
    cli: Cli,
    org: str,
    name: str,
    email: str,
    role: str,
    models: tuple[str, ...],
    quota: int | None,
    concurrency: int | None,
) -> None:
    """Adds a member to an org. Without --model it may call none."""
    books = open_books(cli.config())
    with by_options():
        made = books.catalog.create_member(
            books.catalog.account(org).id,
            name,
            email=email,
            role=role,
            models=_granted(books, models),
            quota_nano=quota,
            concurrency=concurrency or 0,
        )
    books.reach_workers()
    cli.show(_shown(made), f"{made.id}  {made.name} ({made.role})")


@member.command("list")
@click.option("--org", required=True, help="Name or id of the org.")
@click.pass_obj
def list_(cli: Cli, org: str) -> None:
    """Lists the members of an org."""
    catalog = open_books(cli.config()).catalog
    rows = [_shown(found) for found in catalog.members(catalog.account(org).id)]
    names = ("id", "name", "role", "status", "quota_usd", "models")
    cells = [[_text(row[name]) for name in names] for row in rows]
    cli.show(rows, table(names, cells))


@member.command("update")
@click.argument("member_id")
@click.option("--name")
@click.option("--email")
@click.option("--role", type=_ROLES)
@click.option("--status", type=click.Choice(["active", "disabled"]))
@click.option("--model", "models", multiple=True, help=_MODEL_HELP)
@money("--quota", "What the member may spend: the allotment.")
@rate("--concurrency", "concurrency", "Requests at once.")
@click.pass_obj
def update(
    cli: Cli, /, member_id: str, models: tuple[str, ...], quota: int | None, **given: Any
) -> None:
    """Changes what is named; the rest stays."""
    books = open_books(cli.config())
    fields = {name: value for name, value in given.items() if value is not None}
    if models:
        fields["models"] = _granted(books, models)
    if quota is not None:
        fields["quota_nano"] = quota or None
    if not fields:
        raise click.UsageError("say what is to change")
    _change(cli, books, member_id, fields)


@member.command("cap")
@click.argument("member_id")
@click.argument("model")
@click.argument("cap", metavar="USD", callback=usd)
@click.pass_obj
def cap(cli: Cli, member_id: str, model: str, cap: int) -> None:
    """Caps what a member may spend on one model; 0 takes the cap away."""
    books = open_books(cli.config())
    (canonical,) = models_of(books, [model])
    _change(cli, books, member_id, {"caps_nano": {canonical: cap or None}})


@member.command("remove")
@click.argument("member_id")
@click.pass_obj
def remove(cli: Cli, member_id: str) -> None:
    """Disables a member and revokes its keys. It stays listed, as its usage does."""
    books = open_books(cli.config())
    gone = books.catalog.remove_member(member_id)
    books.reach_workers()
    cli.show(_shown(gone), f"{gone.name} is removed")


def _change(cli: Cli, books: Books, member_id: str, fields: dict[str, Any]) -> None:
    with by_options():
        changed = books.catalog.update_member(member_id, **fields)
    books.reach_workers()
    cli.show(_shown(changed), f"{changed.name} is changed")


def _granted(books: Books, models: tuple[str, ...]) -> tuple[str, ...]:
    if models == ("none",):
        return ()
    return (EVERY_MODEL,) if "all" in models else models_of(books, models)


def _shown(found: Member) -> dict[str, Any]:
    return {
        "id": found.id,
        "org_id": found.account_id,
        "name": found.name,
        "email": found.email or None,
        "role": found.role,
        "status": found.status,
        "models": list(found.models),
        "quota_usd": limit_text(found.quota_nano),
        "caps_usd": {
            model: limit_text(cap) for model, cap in found.caps_nano.items() if cap is not None
        },
        "concurrency": found.concurrency,
    }


def _text(value: Any) -> Any:
    return ",".join(value) or "-" if isinstance(value, list) else value
