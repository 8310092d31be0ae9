"""`tollgate price`: price versions."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from services.backends import price_files
from services.backends.clock import SystemClock
from services.backends.sql.prices import PriceChange
from services.backends.sql.prices import diff as diff_books
from services.cli.bootstrap import open_books
from services.cli.context import Cli, Group, iso, table
from services.cli.price_study import margin, whatif
from services.core.money import exact_usd
from services.core.prices import ModelPrice, PriceVersion


@click.group(cls=Group)
def price() -> None:
    """Prices. A change is a new version; events name the version they were rated by."""


price.add_command(whatif)
price.add_command(margin)


@price.command("list")
@click.option("--version", "version_id", help="A price version's id; the one in force without it.")
@click.option("--versions", is_flag=True, help="List the versions instead.")
@click.pass_obj
def list_(cli: Cli, version_id: str | None, versions: bool) -> None:
    """Lists prices in USD per 1,000,000 units."""
    catalog = open_books(cli.config()).catalog
    history = catalog.price_versions()
    if versions:
        entries = [
            {"price_version": entry.price_version_id, "effective_at": iso(entry.effective_at)}
            for entry in history
        ]
        cli.show(
            entries, table(("price_version", "effective_at"), [list(e.values()) for e in entries])
        )
        return
    shown = catalog.price_version(version_id or history[0].price_version_id)
    _show(cli, shown)


@price.command("import")
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only checks the file and shows what would change.")
@click.pass_obj
def import_(cli: Cli, file: Path, dry_run: bool) -> None:
    """Imports a price file (TOML, as in schemas/prices) or a folder of them. Its models and
    channel prices replace those of the same name, at once and for good; requests in flight keep
    their version."""
    own = price_files.read(file)
    catalog = open_books(cli.config()).catalog
    before = catalog.price_version(catalog.price_versions()[0].price_version_id).book
    price_files.require_models(own, before.models)
    version = catalog.import_prices(own, SystemClock().now_us(), dry_run=dry_run)
    changes = [_change(each) for each in diff_books(before, version.book)]
    said = "would be" if dry_run else "is"
    cli.show(
        {"price_version": version.id, "in_force": not dry_run, "changes": changes},
        f"{_changes_table(changes)}\n"
        f"price version {version.id} {said} in force; {len(changes)} prices changed",
    )


@price.command("diff")
@click.argument("old")
@click.argument("new")
@click.pass_obj
def diff(cli: Cli, old: str, new: str) -> None:
    """Shows what changed from one price version to another."""
    changes = open_books(cli.config()).catalog.diff_prices(old, new)
    rows = [_change(each) for each in changes]
    cli.show(rows, _changes_table(rows))


def _changes_table(rows: list[dict[str, Any]]) -> str:
    names = ("model", "channel", "class", "old_usd", "new_usd")
    return table(names, [[row[name] for name in names] for row in rows])


def _change(change: PriceChange) -> dict[str, Any]:
    return {
        "model": change.model,
        "channel": change.channel or None,
        "class": change.usage_class,
        "old_usd": _usd(change.old_nano),
        "new_usd": _usd(change.new_nano),
    }


def _show(cli: Cli, version: PriceVersion) -> None:
    classes = ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output", "web_search")
    models = sorted(version.book.models.values(), key=lambda model: (model.vendor, model.model))
    value = {
        "price_version": version.id,
        "multipliers_ppm": version.book.multipliers_ppm,
        "models": {
            model.model: {name: exact_usd(nano) for name, nano in model.classes.items()}
            for model in models
        },
        "channels": version.book.channels,
    }
    rows = [
        [model.model, *(_usd(model.classes.get(name)) for name in classes), _others(model, classes)]
        for model in models
    ]
    cli.show(value, f"price version {version.id}\n" + table(("model", *classes, "other"), rows))


def _others(model: ModelPrice, shown: Collection[str]) -> str | None:
    """The plain prices beside `shown`, those of generations; tiers are in the JSON."""
    prices = model.classes.items()
    told = [f"{name} {exact_usd(n)}" for name, n in prices if name not in shown and ":" not in name]
    return ", ".join(told) or None


def _usd(nano: int | None) -> str | None:
    return None if nano is None else exact_usd(nano)
