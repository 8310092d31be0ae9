"""`tollgate receipt`: signed receipts and their keys."""

import json
from pathlib import Path
from typing import Any

import click

from services.backends.query_client import QueryClient, QueryUnavailable
from services.backends.receipt_keys import FOLDER, PUBLISHED, ReceiptKeys
from services.cli.bootstrap import open_books, open_database
from services.cli.context import Cli, Group, iso, table
from services.core.receipts import NotGenuine, published
from services.core.receipts import verify as check
from services.meter.bootstrap import open_bus


@click.group(cls=Group)
def receipt() -> None:
    """Proof of single charges, to be verified by anybody."""


@receipt.command("get")
@click.argument("request_id")
@click.option("--account", default="demo", show_default=True, help="Name or id.")
@click.pass_obj
def get(cli: Cli, request_id: str, account: str) -> None:
    """Prints the signed receipt of a billed request."""
    from services.meter.receipts import NoReceipt, Receipts

    config = cli.config()
    owner = open_books(config).catalog.account(account)
    try:
        document = QueryClient(config).get(f"/v1/receipts/{request_id}", owner.id)
    except QueryUnavailable:
        bus = open_bus(config)
        try:
            receipts = Receipts(open_database(config), bus, ReceiptKeys(config.data_dir))
            document = receipts.signed(owner.id, request_id)
        except NoReceipt as ex:
            raise click.ClickException(str(ex)) from ex
        finally:
            bus.close()
    click.echo(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False))


@receipt.command("verify")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--key",
    "key_file",
    type=click.Path(exists=True, path_type=Path),
    help="The keys as GET /v1/receipts/keys gives them; else those of the data folder.",
)
@click.pass_obj
def verify(cli: Cli, file: Any, key_file: Path | None) -> None:
    """Checks a receipt without asking anybody. Exit code 1: it is not genuine."""
    path = key_file or Path(cli.config().data_dir) / FOLDER / PUBLISHED
    try:
        keys = published(json.loads(path.read_bytes()))
    except (OSError, ValueError) as ex:
        raise click.ClickException(f"{path}: {ex}") from ex
    try:
        found = check(json.loads(file.read()), keys)
    except (ValueError, RecursionError) as ex:
        raise click.ClickException(f"no JSON: {ex}") from ex
    except NotGenuine as ex:
        raise click.ClickException(f"not genuine: {ex}") from ex
    cli.show(
        {"genuine": True, "receipt": found},
        f"genuine: request {found['request_id']} at {found['time']}, {found['model_served']}, "
        f"${found['charged_usd']}",
    )


@receipt.command("keys")
@click.pass_obj
def keys(cli: Cli) -> None:
    """Lists the public keys, the one in use first."""
    entries = ReceiptKeys(cli.config().data_dir).published()["keys"]
    rows = [
        [
            each["key_id"],
            each["public_key"],
            iso(each["created_at"]),
            iso(each["retired_at"]) if each["retired_at"] else None,
        ]
        for each in entries
    ]
    cli.show({"keys": entries}, table(("key_id", "public_key", "created_at", "retired_at"), rows))


@receipt.command("rotate")
@click.pass_obj
def rotate(cli: Cli) -> None:
    """Makes a new key. Old receipts stay verifiable; nothing can be signed with the old key."""
    key_id = ReceiptKeys(cli.config().data_dir).rotate()
    cli.show({"key_id": key_id}, f"{key_id} signs from now on")
