"""`tollgate meter`: moves and books events, serves queries."""

import sys
from typing import Final

import click

from services.cli.context import Cli, Command

ROLES: Final = ("relay", "ledger", "clickhouse", "query")


def _roles(context: click.Context, parameter: click.Parameter, value: str) -> set[str]:
    roles = {name.strip() for name in value.split(",") if name.strip()}
    unknown = roles.difference(ROLES)
    if unknown or not roles:
        raise click.BadParameter(f"roles are {', '.join(ROLES)}")
    return roles


@click.command(cls=Command)
@click.option("--roles", default=",".join(ROLES), callback=_roles, help="Comma-separated roles.")
@click.option("--live", is_flag=True, help="Print one line per booked request.")
@click.pass_obj
def meter(cli: Cli, roles: set[str], live: bool) -> None:
    """Runs the named roles of the meter in one process until SIGTERM."""
    config = cli.config()
    from services.meter.main import run

    sys.exit(run(config, roles, live))
