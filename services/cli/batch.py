"""`tollgate batch`: drives media jobs."""

import sys

import click

from services.cli.context import Cli, Command


@click.command(cls=Command)
@click.pass_obj
def batch(cli: Cli) -> None:
    """Runs the batch service in one process until SIGTERM: its API, the jobs and the sweeps. Any
    number of them may run on one database."""
    config = cli.config()
    from services.batch.main import run

    sys.exit(run(config))
