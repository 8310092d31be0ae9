"""`tollgate admin`: the operator's key for the management API."""

import click

from services.backends.admin_key import AdminKey
from services.cli.context import Cli, Group
from services.cli.demo import tell_admin_key


@click.group(cls=Group)
def admin() -> None:
    """The operator's key for the management API (`/api/v1`)."""


@admin.command("show")
@click.pass_obj
def show(cli: Cli) -> None:
    """Prints the admin key of this data folder, made when there is none."""
    secret = AdminKey(cli.config().data_dir).secret()
    cli.show({"admin_key": secret}, secret)


@admin.command("rotate")
@click.pass_obj
def rotate(cli: Cli) -> None:
    """Makes another admin key; the old one is none from then on."""
    config = cli.config()
    secret = AdminKey(config.data_dir).rotate()
    tell_admin_key(config, secret)
    cli.show({"admin_key": secret}, secret)
