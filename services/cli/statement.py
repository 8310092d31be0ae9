"""`tollgate statement`: a wallet's month, from the ledger alone."""

import click

from services.backends.sql.wallet_lines import WalletLines
from services.cli.bootstrap import open_books, open_database
from services.cli.context import Cli, Command
from services.core.statements import FORMATS, Statement, month, render


@click.command(cls=Command)
@click.option("--account", default="demo", show_default=True, help="Name or id.")
@click.option("--period", required=True, metavar="YYYY-MM", help="A month, UTC.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="text, unless --json.")
@click.pass_obj
def statement(cli: Cli, account: str, period: str, form: str | None) -> None:
    """Prints every posting of a month with the balances before and after: the same bytes each time
    while nothing is posted into that month."""
    try:
        since, until = month(period)
    except ValueError as ex:
        raise click.UsageError(f"--period: {ex}") from ex
    config = cli.config()
    owner = open_books(config).catalog.account(account)
    lines = WalletLines(open_database(config))
    made = Statement(
        account_id=owner.id,
        period=period,
        since=since,
        until=until,
        opening_nano=lines.balance_before(owner.id, since),
        lines=lines.between(owner.id, since, until),
    )
    for piece in render(made, form or ("json" if cli.as_json else "text")):
        click.echo(piece, nl=False)
