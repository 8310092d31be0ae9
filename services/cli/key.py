"""`tollgate key`: what clients authenticate with."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from services.backends.clock import SystemClock
from services.cli.bootstrap import Books, open_books
from services.cli.context import Cli, Group, iso, table
from services.cli.limits import by_options, limit_text, models_of, money, networks_of, rates
from services.core.catalog import Key

F = TypeVar("F", bound=Callable[..., Any])

_DAY_US: Final = 86_400 * 1_000_000
_CLEAR: Final = "all"


@click.group(cls=Group)
def key() -> None:
    """API keys."""


def _limits(command: F) -> F:
    for option in (
        rates,
        click.option(
            "--model", "models", multiple=True, help="May be repeated; all: all of the group."
        ),
        click.option("--ip-deny", multiple=True, metavar="CIDR", help="May be repeated."),
        click.option(
            "--ip-allow", multiple=True, metavar="CIDR", help="May be repeated; all: every one."
        ),
        money("--window-7d", "What it may spend in any 7 days."),
        money("--window-1d", "What it may spend in any 24 hours."),
        money("--window-5h", "What it may spend in any 5 hours."),
        money("--quota", "What the key may spend in its life."),
        click.option("--expires-in-days", type=click.IntRange(min=0, max=36_500), help="0: never."),
    ):
        command = option(command)
    return command


@key.command("create")
@click.option("--account", help="Name or id of the account that pays; a sub-key's is its parent's.")
@click.option("--name", required=True)
@click.option("--group", help="[default: default]")
@_limits
@click.option("--parent", "parent_id", metavar="KEY_ID", help="Makes a sub-key of that key.")
@click.option("--member", "member_id", metavar="MEMBER_ID", help="A key of that member of an org.")
@click.option(
    "--custom-secret-file", type=click.File(), help="A secret of your own; - reads it from stdin."
)
@click.pass_obj
def create(
    cli: Cli,
    /,
    account: str | None,
    name: str,
    group: str | None,
    parent_id: str | None,
    member_id: str | None,
    custom_secret_file: Any,
    **limits: Any,
) -> None:
    """Makes a key and prints its secret, this once."""
    books = open_books(cli.config())
    secret = custom_secret_file.read().strip() if custom_secret_file is not None else None
    with by_options():
        made, clear = books.catalog.create_key(
            _payer(books, account, parent_id, member_id),
            name,
            group,
            parent_id=parent_id,
            member_id=member_id,
            custom_secret=secret,
            **_fields(books, limits),
        )
    books.reach_workers()
    cli.show({"id": made.id, "key": clear}, f"{made.id}  {clear}")


@key.command("list")
@click.option("--account", help="Name or id of an account; all without it.")
@click.pass_obj
def list_(cli: Cli, account: str | None) -> None:
    """Lists keys in their masked form."""
    catalog = open_books(cli.config()).catalog
    owner = catalog.account(account).id if account is not None else None
    rows = [_shown(found) for found in catalog.keys(owner)]
    names = ("id", "name", "key", "account_id", "group", "status", "quota_usd", "expires_at")
    cli.show(rows, table(names, [[row[name] for name in names] for row in rows]))


@key.command("show")
@click.argument("key_id")
@click.pass_obj
def show(cli: Cli, key_id: str) -> None:
    """Shows a key with its limits and what is used of them."""
    books = open_books(cli.config())
    found = books.catalog.key(key_id)
    limits = [
        {
            "kind": state.kind,
            "limit_usd": limit_text(state.limit_nano),
            "used_usd": limit_text(state.settled_nano),
        }
        for state in books.accounts.limit_states(found.account_id, list(found.limit_ids))
    ]
    row = _shown(found)
    lines = [f"{name:18}{_text(value)}" for name, value in row.items()]
    lines += [
        f"{each['kind']:18}{each['used_usd']} of {each['limit_usd'] or 'no limit'}"
        for each in limits
    ]
    cli.show({**row, "limits": limits}, "\n".join(lines))


@key.command("update")
@click.argument("key_id")
@click.option("--name")
@click.option("--group")
@_limits
@click.pass_obj
def update(cli: Cli, /, key_id: str, name: str | None, group: str | None, **limits: Any) -> None:
    """Changes what is named; the rest stays. Widening a key widens none of its sub-keys."""
    books = open_books(cli.config())
    fields = _fields(books, limits)
    fields |= {k: v for k, v in (("name", name), ("group", group)) if v is not None}
    if not fields:
        raise click.UsageError("say what is to change")
    with by_options():
        changed = books.catalog.update_key(key_id, **fields)
    books.reach_workers()
    cli.show(_shown(changed), f"{changed.id} is changed")


@key.command("rotate")
@click.argument("key_id")
@click.pass_obj
def rotate(cli: Cli, key_id: str) -> None:
    """Gives a key another secret and prints it, this once. The old one dies at once."""
    books = open_books(cli.config())
    with by_options():
        made, secret = books.catalog.rotate_key(key_id)
    books.reach_workers()
    cli.show({"id": made.id, "key": secret}, f"{made.id}  {secret}")


@key.command("reveal")
@click.argument("key_id")
@click.pass_obj
def reveal(cli: Cli, key_id: str) -> None:
    """Prints a key's secret."""
    secret = open_books(cli.config()).catalog.reveal_key(key_id)
    cli.show({"id": key_id, "key": secret}, secret)


@key.command("disable")
@click.argument("key_id")
@click.pass_obj
def disable(cli: Cli, key_id: str) -> None:
    """Refuses a key and its sub-keys until it is enabled again; cuts their streams."""
    _switch(cli, key_id, "disabled")


@key.command("enable")
@click.argument("key_id")
@click.pass_obj
def enable(cli: Cli, key_id: str) -> None:
    """Lets a disabled key call again."""
    _switch(cli, key_id, "active")


@key.command("revoke")
@click.argument("key_id")
@click.pass_obj
def revoke(cli: Cli, key_id: str) -> None:
    """Ends a key and its sub-keys for good. Workers refuse it within a second and cut its
    streams."""
    _switch(cli, key_id, "revoked")


def _switch(cli: Cli, key_id: str, status: str) -> None:
    books = open_books(cli.config())
    with by_options():
        changed = books.catalog.set_key_status(key_id, status)
    books.reach_workers()
    cli.show(_shown(changed), f"{changed.id} is {changed.status}")


def _payer(books: Books, account: str | None, parent_id: str | None, member_id: str | None) -> str:
    """The id of the account that the key belongs to."""
    if account is not None:
        return books.catalog.account(account).id
    if parent_id is not None:
        return books.catalog.key(parent_id).account_id
    if member_id is not None:
        return books.catalog.member(member_id).account_id
    raise click.UsageError("Missing option '--account'.")


def _fields(books: Books, limits: dict[str, Any]) -> dict[str, Any]:
    """What the catalog takes, of the options that were given."""
    found: dict[str, Any] = {}
    for option in ("quota", "window_5h", "window_1d", "window_7d"):
        if limits[option] is not None:
            found[f"{option}_nano"] = limits[option] or None
    for name in ("concurrency", "requests_per_min", "tokens_per_min"):
        if limits[name] is not None:
            found[name] = limits[name]
    for name in ("ip_allow", "ip_deny"):
        if limits[name]:
            found[name] = networks_of(f"--{name.replace('_', '-')}", limits[name])
    if limits["models"]:
        every = limits["models"] == (_CLEAR,)
        found["models"] = () if every else models_of(books, limits["models"])
    days = limits["expires_in_days"]
    if days is not None:
        found["expires_at"] = SystemClock().now_us() + days * _DAY_US if days else None
    return found


def _shown(found: Key) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "key": found.masked,
        "account_id": found.account_id,
        "parent_id": found.parent_id,
        "member_id": found.member_id,
        "group": found.group,
        "status": found.status,
        "quota_usd": limit_text(found.quota_nano),
        "window_5h_usd": limit_text(found.window_5h_nano),
        "window_1d_usd": limit_text(found.window_1d_nano),
        "window_7d_usd": limit_text(found.window_7d_nano),
        "ip_allow": list(found.ip_allow),
        "ip_deny": list(found.ip_deny),
        "models": list(found.models),
        "concurrency": found.concurrency,
        "requests_per_min": found.requests_per_min,
        "tokens_per_min": found.tokens_per_min,
        "expires_at": None if found.expires_at is None else iso(found.expires_at),
        "created_at": iso(found.created_at),
    }


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return "-" if value in (None, 0) else str(value)
