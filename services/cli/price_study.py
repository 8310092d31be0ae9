"""`tollgate price whatif` and `tollgate price margin`."""

from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from schemas.config import Config
from schemas.events import Error, Usage
from services.backends import price_files
from services.cli.bootstrap import open_books, open_database
from services.cli.context import Cli, Command, table
from services.cli.moment import moment_us
from services.core.money import exact_usd
from services.core.price_study import Margins, PriceStudy, below_cost
from services.core.prices import PriceBook
from services.meter.bootstrap import open_bus
from services.meter.settled_events import settled_events

_since = click.option("--since", callback=moment_us, metavar="TIME", help="From when, included.")
_until = click.option("--until", callback=moment_us, metavar="TIME", help="Until when, excluded.")


@click.command("whatif", cls=Command)
@click.option(
    "--prices",
    "file",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="A price file or a folder of them, as `price import` takes it.",
)
@_since
@_until
@click.pass_obj
def whatif(cli: Cli, file: Path, since: int | None, until: int | None) -> None:
    """Rates a period's usage again under other prices. Changes nothing."""
    config = cli.config()
    catalog = open_books(config).catalog
    study = PriceStudy(price_files.read(file))
    books: dict[str, PriceBook] = {}
    for event in _events(config, since, until):
        if isinstance(event, Usage):
            if event.price_version not in books:
                books[event.price_version] = catalog.price_version(event.price_version).book
            study.add(event, books[event.price_version])
    lines = sorted(study.models.values(), key=lambda line: line.model)
    now_nano, then_nano = (
        sum(line.now_nano for line in lines),
        sum(line.then_nano for line in lines),
    )
    rows = [
        [
            line.model,
            line.requests,
            exact_usd(line.now_nano),
            exact_usd(line.then_nano),
            exact_usd(line.then_nano - line.now_nano),
            line.unpriced,
        ]
        for line in lines
    ]
    total = f"total ${exact_usd(now_nano)} now, ${exact_usd(then_nano)} then"
    columns = ("model", "requests", "now_usd", "then_usd", "difference_usd", "unpriced")
    cli.show(
        {"models": msgspec.to_builtins(lines), "now_nano": now_nano, "then_nano": then_nano},
        table(columns, rows) + f"\n{total}",
    )


@click.command("margin", cls=Command)
@_since
@_until
@click.pass_obj
def margin(cli: Cli, since: int | None, until: int | None) -> None:
    """Shows what customers paid and providers cost, per model and channel, and which prices in
    force are below cost."""
    config = cli.config()
    margins = Margins()
    for event in _events(config, since, until):
        margins.add(event)
    catalog = open_books(config).catalog
    history = catalog.price_versions()
    low = []
    if history:
        low = list(below_cost(catalog.price_version(history[0].price_version_id).book))
    lines = [line for _, line in sorted(margins.lines.items())]
    warnings = [
        f"warning: {line.model} on {line.channel or 'no channel'} lost "
        f"${exact_usd(-line.margin_nano)}"
        for line in lines
        if line.margin_nano < 0
    ]
    warnings += [
        f"warning: {each.usage_class} of {each.model} for group {each.group}"
        f"{' on ' + each.channel if each.channel else ''} is sold at "
        f"${exact_usd(each.customer_nano)} per million and costs ${exact_usd(each.provider_nano)}"
        for each in low
    ]
    rows = [
        [
            line.model,
            line.channel,
            line.requests,
            line.free,
            exact_usd(line.charged_nano),
            exact_usd(line.written_off_nano),
            exact_usd(line.provider_cost_nano),
            exact_usd(line.margin_nano),
        ]
        for line in lines
    ]
    columns = (
        "model", "channel", "requests", "free", "charged_usd", "written_off_usd", "provider_usd",
        "margin_usd",
    )  # fmt: skip
    cli.show(
        {
            "lines": [
                {**msgspec.structs.asdict(line), "margin_nano": line.margin_nano} for line in lines
            ],
            "below_cost": [each._asdict() for each in low],
            "warnings": warnings,
        },
        "\n".join([table(columns, rows), *warnings]),
    )


def _events(config: Config, since: int | None, until: int | None) -> Iterator[Usage | Error]:
    bus = open_bus(config)
    try:
        yield from settled_events(bus, open_database(config), since, until)
    finally:
        bus.close()
