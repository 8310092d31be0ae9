"""`tollgate usage`: what an account used and paid."""

import click

from services.cli import queries
from services.cli.bootstrap import open_books
from services.cli.context import Cli, Command, table
from services.core.errors import InvalidRequest
from services.meter import query_params

_COLUMNS = (
    "created_at",
    "model",
    "status",
    "outcome",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cost_usd",
    "request_id",
)


def _keys(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    try:
        return None if value is None else query_params.group_by({"group_by": value})
    except InvalidRequest as ex:
        raise click.BadParameter(ex.message) from ex


@click.command(cls=Command)
@click.option("--account", default="demo", show_default=True, help="Name or id.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option(
    "--by",
    "group_by",
    metavar="day|hour|model|api_key",
    callback=_keys,
    help="Sums instead of rows; several with commas.",
)
@click.pass_obj
def usage(cli: Cli, account: str, limit: int, group_by: tuple[str, ...] | None) -> None:
    """Shows requests, newest first, failures included (they cost 0)."""
    config = cli.config()
    owner = open_books(config).catalog.account(account)
    if group_by is not None:
        summed = queries.buckets(config, owner.id, group_by)
        lines = summed["buckets"]
        names = tuple(lines[0]) if lines else ()
        cells = [[line[name] for name in names] for line in lines]
        cli.show(summed, table(names, cells) + f"\ntotal ${summed['totals']['total_usd']}")
        return
    rows = queries.rows(config, owner.id, limit)
    cells = [[row.get(name) for name in _COLUMNS] for row in rows]
    cli.show(rows, table(_COLUMNS, cells))
