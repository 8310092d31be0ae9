"""`tollgate incarnation`: runs of workers."""

import click
import msgspec

from services.backends.sql.budgets import Budgets
from services.backends.sql.incarnations import Incarnations
from services.cli.bootstrap import open_database
from services.cli.context import Cli, Group, iso, table
from services.core.money import exact_usd

_COLUMNS = ("id", "host", "state", "opened_at", "leases", "leased_usd")


@click.group(cls=Group)
def incarnation() -> None:
    """Runs of workers and the money that they hold."""


@incarnation.command("list")
@click.option("--all", "finished", is_flag=True, help="Also those that ended and hold nothing.")
@click.pass_obj
def list_(cli: Cli, finished: bool) -> None:
    """Lists those that run or still hold money."""
    found = _open(cli).listed(finished=finished)
    rows = [
        {
            **msgspec.structs.asdict(each),
            "opened_at": iso(each.opened_at),
            "closing_at": iso(each.closing_at) if each.closing_at else None,
            "closed_at": iso(each.closed_at) if each.closed_at else None,
            "leased_usd": exact_usd(each.leased_nano),
        }
        for each in found
    ]
    cli.show(rows, table(_COLUMNS, [[row[name] for name in _COLUMNS] for row in rows]))


@incarnation.command("lost")
@click.argument("name")
@click.pass_obj
def lost(cli: Cli, name: str) -> None:
    """Declares that NAME will not come back: its host or its disk is gone. What its leases have
    left returns at once; what it still sends later is booked as our loss, never to a customer."""
    done = _open(cli).lose(name)
    cli.show(
        {"id": name, "leases": done.leases, "returned_nano": done.returned_nano},
        f"{name}: {done.leases} leases ended, ${exact_usd(done.returned_nano)} returned",
    )


def _open(cli: Cli) -> Incarnations:
    engine = open_database(cli.config())
    return Incarnations(engine, Budgets(engine))
