"""What a configuration must say beyond the types of its values. `check` raises ValueError with
one line that begins with the path of the wrong value."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from schemas.config import DESCRIBED, PROVIDERS, Channel, Config
from services.core.addresses import networks
from services.core.bonus import steps_of
from services.core.urls import base_url

T = TypeVar("T")

_SERVER: Final = r"(\[[^]/?]*\]|[^][:/?]*)(:[0-9]{1,5})?([/?].*)?"


def check(config: Config) -> None:
    """Raises ValueError for the first value that is wrong."""
    _unique("channels", (channel.name for channel in config.channels))
    _unique("groups", (group.name for group in config.groups))
    for at, channel in enumerate(config.channels):
        _channel(f"channels[{at}]", channel)
    for path, texts in (
        ("edge.trusted_proxies", config.edge.trusted_proxies),
        ("batch.callback_networks", config.batch.callback_networks),
        ("batch.fetch_networks", config.batch.fetch_networks),
    ):
        for at, text in enumerate(texts):
            _at(f"{path}[{at}]", networks, [text])
    for path, text in (
        ("batch.edge_url", config.batch.edge_url),
        ("artifacts.public_url", config.artifacts.public_url),
        ("artifacts.endpoint_url", config.artifacts.endpoint_url),
    ):
        if text:
            _at(path, base_url, text)
    for path, text in (
        ("edge.query_url", config.edge.query_url),
        ("edge.batch_url", config.edge.batch_url),
    ):
        if not text.startswith(("unix:", "http://")):
            raise ValueError(f"{path}: write unix:PATH or http://host:port")
        if text.startswith("http:"):
            _at(path, base_url, text)
    if config.artifacts.store == "s3" and not config.artifacts.bucket:
        raise ValueError('artifacts.bucket: store = "s3" needs one')
    steps_of(config.bonus)
    _places(config)


def _places(config: Config) -> None:
    """Where database, ClickHouse and Kafka are."""
    _at("database.url", database_url, config.database.url)
    if not _is_clickhouse(config.clickhouse.dsn):
        raise ValueError("clickhouse.dsn: write chdb:///FOLDER or http(s)://host:port")
    if config.bus.kind == "kafka" and not config.bus.bootstrap:
        raise ValueError("bus.bootstrap: name at least one broker, host:port")
    for at, broker in enumerate(config.bus.bootstrap):
        if ":" in broker:  # the usual port otherwise
            _at(f"bus.bootstrap[{at}]", _host_port, broker)
    for path, text in (
        ("meter.query_listen", config.meter.query_listen),
        ("batch.listen", config.batch.listen),
    ):
        if text:
            _at(path, _host_port, text)


def database_url(text: str) -> None:
    """Raises ValueError, which never quotes the password, unless it tells a database of ours."""
    place = text.removeprefix("postgresql+psycopg://")
    server = place != text and re.fullmatch(_SERVER, place.rpartition("@")[2])
    if not (server or re.match("sqlite:///.", text)):
        raise ValueError("write sqlite:///FILE or postgresql+psycopg://USER@HOST:PORT/NAME")


def _host_port(text: str) -> None:
    host, _, port = text.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise ValueError("write host:port")


def _is_clickhouse(dsn: str) -> bool:
    try:
        parts = urlsplit(dsn)
        _ = parts.port  # reads it
    except ValueError:  # which may quote the password
        return False
    if parts.scheme == "chdb":
        return not parts.netloc and len(parts.path) > 1
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _channel(path: str, channel: Channel) -> None:
    if bool(channel.dialect) == bool(channel.provider):
        raise ValueError(f"{path}: write either `dialect` (text) or `provider` (media)")
    if channel.provider:
        _provider(f"{path}.provider", channel.provider)
    _at(f"{path}.base_url", base_url, channel.base_url)
    if not channel.models:
        raise ValueError(f"{path}.models: a channel serves at least one model")
    if channel.credential and not channel.credential.startswith(("env:", "file:")):
        raise ValueError(f"{path}.credential: write env:NAME or file:PATH, never the secret")


def _provider(path: str, provider: str) -> None:
    if not provider.startswith(DESCRIBED):
        if provider not in PROVIDERS:
            raise ValueError(f"{path}: one of {', '.join(PROVIDERS)}, or {DESCRIBED}FILE")
    elif not Path(provider.removeprefix(DESCRIBED)).is_file():
        raise ValueError(f"{path}: there is no file {provider.removeprefix(DESCRIBED)}")


def _unique(path: str, names: Iterable[str]) -> None:
    taken: set[str] = set()
    for at, name in enumerate(names):
        if name in taken:
            raise ValueError(f"{path}[{at}].name: `{name}` is used twice")
        taken.add(name)


def _at(path: str, read: Callable[[T], object], value: T) -> None:
    try:
        read(value)
    except ValueError as ex:
        raise ValueError(f"{path}: {ex}") from ex
