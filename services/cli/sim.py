"""`tollgate sim`: the simulated provider, in place of this process."""

import os
import sys

import click

from services.cli.context import Command


@click.command(
    cls=Command,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sim(arguments: tuple[str, ...]) -> None:
    """Simulated provider: three dialects, faults by model name. `tollgate sim --help` lists its
    own options."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "services.sim", *arguments])  # noqa: S606
