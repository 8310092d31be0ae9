"""`tollgate rebuild`: ledger or analytics tables from the log."""

from pathlib import Path

import click
import msgspec

from services.backends.config_check import database_url
from services.cli.bootstrap import open_database
from services.cli.context import Cli, Group
from services.meter.booked import Booked
from services.meter.bootstrap import entry_reader, open_bus


@click.group(cls=Group)
def rebuild() -> None:
    """Makes again what follows from the log."""


def _database(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        if value is not None:
            database_url(value)
    except ValueError as ex:
        raise click.BadParameter(str(ex)) from ex
    return value


@rebuild.command("ledger")
@click.option(
    "--into",
    metavar="URL",
    callback=_database,
    help="An empty database; it is migrated, filled and compared with the living ledger. Without "
    "it the configured database is filled, whose ledger must be empty.",
)
@click.pass_obj
def ledger(cli: Cli, into: str | None) -> None:
    """Posts every event of the log again. Exit code 1: the living ledger tells otherwise, the
    events are named."""
    from services.backends.sql import migrate, spare_books
    from services.backends.sql.engine import open_engine
    from services.meter.rebuild_ledger import CannotRebuild, LedgerRebuild, compare, ends_of

    config = cli.config()
    live = target = open_database(config)
    bus = open_bus(config)
    try:
        ranges = ends_of(bus, live)
        if into is not None:
            migrate.upgrade(into, Path(config.data_dir))
            target = open_engine(into, Path(config.data_dir))
            if not spare_books.is_untouched(target):
                raise CannotRebuild("the database of --into is not empty")
            spare_books.copy_beside(live, target)
        work = LedgerRebuild(bus, target, entry_reader(target, config))
        result = work.run(ranges)
        if into is not None and not spare_books.ledger_is_empty(live):
            compare(target, live, ranges, result)
    except CannotRebuild as ex:
        raise click.ClickException(str(ex)) from ex
    finally:
        bus.close()
    told = f"{result.events} events, {result.booked} booked, {result.dead} dead"
    told += (
        f", {result.compared} compared: "
        + ("equal" if not result.differences else "\n".join(["different", *result.differences]))
        if result.compared or result.differences
        else "; run `tollgate reconcile`"
    )
    cli.show(msgspec.to_builtins(result), told)
    if result.differences:
        raise click.exceptions.Exit(1)


@rebuild.command("clickhouse")
@click.pass_obj
def clickhouse(cli: Cli) -> None:
    """Fills new tables from the log and exchanges them with the old ones, which are dropped. With
    a ClickHouse server everything may go on; the embedded engine needs the meter stopped."""
    from services.backends.clickhouse.store import open_store
    from services.backends.sql.plans import Plans
    from services.meter.rebuild_clickhouse import ClickHouseRebuild

    config = cli.config()
    bus = open_bus(config)
    store = open_store(config)
    try:
        engine = open_database(config)
        result = ClickHouseRebuild(store, Plans(engine), bus, Booked(engine)).run()
    finally:
        store.close()
        bus.close()
    equal = "as before" if result.before == result.after else f"before: {result.before.rows}"
    cli.show(
        msgspec.to_builtins(result),
        f"{result.events} events read, {result.after.rows} requests in the new tables ({equal})",
    )
