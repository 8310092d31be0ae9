"""`tollgate sql`: one reading statement on the analytics database."""

import click

from services.cli import queries
from services.cli.context import Cli, Command, table


# A statement may begin with a comment, `-- like this`.
@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("statement")
@click.pass_obj
def sql(cli: Cli, statement: str) -> None:
    """Runs one SELECT over all accounts. docs/sql.md lists the views and their units."""
    found = queries.sql(cli.config(), statement)
    cli.show(found, table(found["columns"], found["rows"]))
