"""`tollgate key`: what clients authenticate with."""

from typing import Any

import click

from services.backends.clock import SystemClock
from services.cli.bootstrap import open_books
from services.cli.context import Cli, Group, iso, table
from services.core.catalog import Key
from services.core.money import exact_usd, parse_usd

_DAY_US = 86_400 * 1_000_000


@click.group(cls=Group)
def key() -> None:
    """API keys."""


@key.command("create")
@click.option("--account", required=True, help="Name or id of the account that pays.")
@click.option("--name", required=True)
@click.option("--group", default="default", show_default=True)
@click.option("--quota", metavar="USD", help="What the key may spend in its life.")
@click.option("--expires-in-days", type=click.IntRange(min=1, max=36_500))
@click.pass_obj
def create(
    cli: Cli, account: str, name: str, group: str, quota: str | None, expires_in_days: int | None
) -> None:
    """Makes a key and prints its secret, this once."""
    books = open_books(cli.config())
    quota_nano = _quota_nano(quota)
    expires_at = None
    if expires_in_days is not None:
        expires_at = SystemClock().now_us() + expires_in_days * _DAY_US
    owner = books.catalog.account(account)
    made, secret = books.catalog.create_key(owner.id, name, group, quota_nano, expires_at)
    cli.show({"id": made.id, "key": secret}, f"{made.id}  {secret}")


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


@key.command("revoke")
@click.argument("key_id")
@click.pass_obj
def revoke(cli: Cli, key_id: str) -> None:
    """Ends a key for good. Workers refuse it within a second and cut its streams."""
    revoked = open_books(cli.config()).catalog.revoke_key(key_id)
    cli.show(_shown(revoked), f"{revoked.id} is revoked")


def _quota_nano(quota: str | None) -> int | None:
    if quota is None:
        return None
    try:
        quota_nano = parse_usd(quota)
    except ValueError as ex:
        raise click.UsageError(str(ex)) from ex
    if quota_nano < 0:
        raise click.UsageError("a quota is not negative")
    return quota_nano


def _shown(found: Key) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "key": found.masked,
        "account_id": found.account_id,
        "group": found.group,
        "status": found.status,
        "quota_usd": None if found.quota_nano is None else exact_usd(found.quota_nano),
        "expires_at": None if found.expires_at is None else iso(found.expires_at),
    }
