"""`tollgate backup` and `tollgate restore`."""

from pathlib import Path

import click

from services.backends.backup import CannotBackUp, back_up
from services.backends.restore import CannotRestore
from services.backends.restore import restore as put_back
from services.cli.context import Cli, Command


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.pass_obj
def backup(cli: Cli, folder: Path) -> None:
    """Backs a data folder up into FOLDER (made or empty) while everything runs. It holds the
    secrets: keep it as safe as the data folder."""
    try:
        manifest = back_up(cli.config(), folder)
    except CannotBackUp as ex:
        raise click.ClickException(str(ex)) from ex
    _tell(cli, f"backed up into {folder}", manifest)


@click.command(cls=Command)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.pass_obj
def restore(cli: Cli, folder: Path) -> None:
    """Puts the backup in FOLDER into an empty data folder. Then start, and `tollgate reconcile`."""
    try:
        manifest = put_back(cli.config(), folder)
    except CannotRestore as ex:
        raise click.ClickException(str(ex)) from ex
    _tell(cli, f"restored from {folder}", manifest)


def _tell(cli: Cli, what: str, manifest: dict[str, object]) -> None:
    files, notes = manifest["files"], manifest["notes"]
    assert isinstance(files, dict)
    assert isinstance(notes, list)
    lines = [f"{what}: {len(files)} files", *(f"note: {note}" for note in notes)]
    cli.show(manifest, "\n".join(lines))
