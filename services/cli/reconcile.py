"""`tollgate reconcile`: the proof that all parts tell the same."""

import time

import click
import msgspec

from services.cli.context import Cli, Command
from services.meter.reconcile import reconcile as compare
from services.meter.reconcile_trace import leave_trace


@click.command(cls=Command)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long relay and sinks may take to catch up.",
)
@click.pass_obj
def reconcile(cli: Cli, wait_s: float) -> None:
    """Compares outbox, log, ledger and analytics up to now, event by event. Exit code 0: equal to
    the nano-dollar; 1: different, each event named; 2: a part has not caught up."""
    config = cli.config()
    began_s = time.time()
    report = compare(config, wait_s)
    leave_trace(config, report, began_s)
    cli.show(msgspec.to_builtins(report), report.text())
    if report.exit_code:
        raise click.exceptions.Exit(report.exit_code)
