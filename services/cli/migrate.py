"""`tollgate migrate`: database, channels, groups and prices as the configuration says."""

import click

from services.cli.bootstrap import apply
from services.cli.context import Cli, Command


@click.command(cls=Command)
@click.pass_obj
def migrate(cli: Cli) -> None:
    """Migrates the database and loads channels, groups and prices into it. Safe to repeat."""
    config = cli.config()
    version = apply(config)
    cli.show(
        {"price_version": version.id, "models": len(version.book.models)},
        f"migrated; price version {version.id} with {len(version.book.models)} models is in force",
    )
