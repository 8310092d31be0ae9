"""Options that keys, members and accounts share, and how their values are read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click

from services.cli.bootstrap import Books
from services.core.addresses import BadNetwork, networks
from services.core.errors import InvalidRequest
from services.core.money import exact_usd, parse_usd
from services.core.routing import ModelIndex

F = TypeVar("F", bound=Callable[..., Any])

EVERY_MODEL: Final = "*"
_CLEAR: Final = ("all", "none")

# Name in the catalog -> the option that sets it.
OPTIONS: Final = {
    "quota_nano": "--quota",
    "window_5h_nano": "--window-5h",
    "window_1d_nano": "--window-1d",
    "window_7d_nano": "--window-7d",
    "expires_at": "--expires-in-days",
    "ip_allow": "--ip-allow",
    "ip_deny": "--ip-deny",
    "models": "--model",
    "group": "--group",
    "concurrency": "--concurrency",
    "requests_per_min": "--rpm",
    "tokens_per_min": "--tpm",
    "parent_id": "--parent",
    "member_id": "--member",
    "custom_secret": "--custom-secret-file",
    "name": "--name",
}


def usd(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A click callback: an amount in USD, 0 or more, as nano-USD."""
    if value is None:
        return None
    try:
        nano = parse_usd(value)
    except ValueError as ex:
        raise click.UsageError(str(ex)) from ex
    if nano < 0:
        raise click.UsageError(f"{parameter.opts[0]}: not below 0")
    return nano


def money(name: str, text: str) -> Callable[[F], F]:
    """An option in USD; 0: no limit."""
    return click.option(name, metavar="USD", callback=usd, help=f"{text} 0: no limit.")


def rate(name: str, variable: str, text: str) -> Callable[[F], F]:
    """An option that counts; 0: no limit."""
    return click.option(
        name, variable, type=click.IntRange(min=0, max=10**9), help=f"{text} 0: no limit."
    )


def rates(command: F) -> F:
    """--concurrency, --rpm, --tpm."""
    command = rate("--tpm", "tokens_per_min", "Tokens a minute.")(command)
    command = rate("--rpm", "requests_per_min", "Requests a minute.")(command)
    return rate("--concurrency", "concurrency", "Requests at once.")(command)


def networks_of(option: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Addresses and networks; `all` and `none` clear the list. Raises UsageError."""
    if len(texts) == 1 and texts[0] in _CLEAR:
        return ()
    try:
        return networks(texts).texts
    except BadNetwork as ex:
        raise click.UsageError(f"{option}: {ex}") from ex


def models_of(books: Books, names: Sequence[str]) -> tuple[str, ...]:
    """Canonical ids. Raises UsageError for a name that means no priced model."""
    catalog = books.catalog
    book = catalog.price_version(catalog.price_versions()[0].price_version_id).book
    index = ModelIndex(book)
    found: dict[str, None] = {}
    for name in names:
        model = index.resolve(name)
        if model is None:
            raise click.UsageError(f"--model: no model is named {name!r}")
        found[model.model] = None
    return tuple(found)


@contextmanager
def by_options() -> Iterator[None]:
    """What the catalog refuses, by the names of the options. Raises UsageError."""
    try:
        yield
    except InvalidRequest as ex:
        option = OPTIONS.get(ex.param or "")
        message = ex.message
        if option is not None:
            message = message.replace(f"{ex.param}:", f"{option}:", 1)
        raise click.UsageError(message) from ex


def limit_text(nano: int | None) -> str | None:
    """A limit in USD; None for none."""
    return None if nano is None else exact_usd(nano)
