"""The `tollgate` command. Each noun lives in a file of its own, imported when it is called."""

import errno
import importlib
import json
import sys
from typing import Final

import click

from services.backends.settings import ConfigError
from services.cli.context import Cli, Group

COMMANDS: Final = {
    "up": "up:up",
    "edge": "edge:edge",
    "meter": "meter:meter",
    "batch": "batch:batch",
    "sim": "sim:sim",
    "migrate": "migrate:migrate",
    "demo": "demo:demo",
    "doctor": "doctor:doctor",
    "account": "account:account",
    "key": "key:key",
    "org": "org:org",
    "member": "member:member",
    "admin": "admin:admin",
    "price": "price:price",
    "channel": "channel:channel",
    "job": "job:job",
    "usage": "usage:usage",
    "sql": "sql:sql",
    "reconcile": "reconcile:reconcile",
    "replay": "replay:replay",
    "statement": "statement:statement",
    "receipt": "receipt:receipt",
    "rebuild": "rebuild:rebuild",
    "backup": "backup:backup",
    "restore": "backup:restore",
    "dead": "dead:dead",
    "incarnation": "incarnation:incarnation",
}

# What is no bug of ours, by name: importing all of it would make every command slow to start.
EXPECTED: Final = frozenset(
    {
        "services.backends.bus.port.BusUnavailable",
        "services.backends.clickhouse.client.ClickHouseUnavailable",
        "services.backends.clickhouse.client.QueryRefused",
        "services.backends.clickhouse.embedded.EngineBusy",
        "services.backends.price_files.PriceFileError",
        "services.backends.query_client.QueryFailed",
        "services.backends.query_client.QueryUnavailable",
        "services.backends.receipt_keys.ReceiptKeysDamaged",
        "services.backends.sql.catalog_ground.AlreadyInCatalog",
        "services.backends.sql.catalog_ground.NotInCatalog",
        "services.backends.sql.dead_events.NoSuchDeadEvent",
        "services.backends.sql.engine.DatabaseUnavailable",
        "services.backends.sql.incarnations.HoldsJobs",
        "services.backends.sql.revision.SchemaTooOld",
        "services.backends.sql.incarnations.NoSuchIncarnation",
        "services.backends.sql.wallets.InsufficientFunds",
        "services.backends.sql.wallets.MovementConflict",
        "services.meter.sql_scope.SqlRefused",
        "services.meter.usage_queries.TooManyBuckets",
        "sqlalchemy.exc.DatabaseError",  # a damaged file
        "sqlite3.DatabaseError",
    }
)


class Nouns(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(f"services.cli.{module}"), name)
        assert isinstance(found, click.Command)
        return found


@click.command(cls=Nouns, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option("0.1.0", prog_name="tollgate")
def tollgate() -> None:
    """Tollgate, a self-hosted LLM gateway with exact metering."""


def main() -> None:
    """Exit code 0, 1 for what could not be done (one line on stderr), 2 for a wrong call."""
    cli = Cli()
    if not all(map(_is_text, sys.argv)):
        _fail(cli, "an argument is not valid UTF-8", 2)
    try:
        code = tollgate.main(standalone_mode=False, obj=cli)
        sys.exit(code if isinstance(code, int) else 0)  # what a command gave to `Exit`
    except click.ClickException as ex:
        _fail(cli, ex.format_message(), ex.exit_code)
    except click.Abort:
        sys.exit(130)
    except ConfigError as ex:
        _fail(cli, str(ex), 2)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone: nothing to say to anybody
        sys.exit(1)
    except OSError as ex:
        if ex.filename is None and ex.errno != errno.ENOSPC:  # where our output goes
            raise
        where = ex.filename2 or ex.filename  # of two the one that is written
        _fail(cli, f"{where}: {ex.strerror}" if where else str(ex.strerror), 1)
    except Exception as ex:
        if f"{type(ex).__module__}.{type(ex).__name__}" not in EXPECTED:
            raise
        _fail(cli, str(getattr(ex, "orig", None) or ex), 1)


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fail(cli: Cli, message: str, code: int) -> None:
    line = " ".join(message.split())
    as_json = cli.as_json or "--json" in sys.argv  # a wrong call ends before its options count
    print(json.dumps({"error": line}) if as_json else f"tollgate: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
