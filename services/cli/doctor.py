"""`tollgate doctor`: what is wrong with this installation, in one look."""

import http.client
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from schemas.config import Config
from schemas.events import TOPIC
from services.backends import price_files, settings
from services.backends.clock import SystemClock
from services.backends.heartbeat import alive
from services.backends.http.private_client import PrivateClient, is_healthy
from services.backends.query_client import QueryClient
from services.backends.sql import migrate
from services.backends.sql.catalog import Catalog
from services.backends.sql.engine import (
    DatabaseUnavailable,
    database_now_us,
    open_engine,
    read,
)
from services.cli.context import Cli, Command, table
from services.cli.demo import base_url, edge_url
from services.cli.ground import file_system, make_folder, require_port
from services.cli.installation import channels
from services.core.windows import SLACK_US, clock_off_us
from services.meter.bootstrap import open_bus

_FREE_BYTES_MIN: Final = 2 * 1024**3


class Finding(Exception):
    """What a check found wrong."""


def _python(config: Config) -> str:
    return f"Python {sys.version.split()[0]}"


def _folder(config: Config) -> str:
    try:
        make_folder(Path(config.data_dir))
    except click.ClickException as ex:
        raise Finding(ex.format_message()) from ex
    return f"{config.data_dir} on {file_system(Path(config.data_dir)) or 'an unknown file system'}"


def _disk(config: Config) -> str:
    free = shutil.disk_usage(config.data_dir).free
    if free < _FREE_BYTES_MIN:
        raise Finding(f"only {free // 1024**2} MB are free; new requests stop when it is full")
    return f"{free // 1024**3} GB are free"


def _secret(config: Config) -> str:
    """Looks only: a secret made here would hide that the one of the database is lost."""
    if settings.has_secret(config.data_dir):
        settings.load_secret(config.data_dir)
        return "secret.key is there"
    if migrate.current(config.database.url, Path(config.data_dir)):
        raise Finding(
            "secret.key is missing: bring it back from a backup or from another host of the "
            "installation, before the next start makes another one; without it no key can be "
            "revealed"
        )
    return "secret.key is made by the first start"


def _prices(config: Config) -> str:
    return f"{len(price_files.load())} models in the price data"


def _channels(config: Config) -> str:
    priced = price_files.load()
    for each in channels(config):
        settings.resolve_secret(each.credential)
    served = {name for each in channels(config) for name in each.models}
    unpriced = sorted(served - priced.keys())
    if unpriced:
        return f"without a price in the data files (refused unless imported): {', '.join(unpriced)}"
    return f"{len(channels(config))} channels, {len(served)} models"


def _database(config: Config) -> str:
    data_dir = Path(config.data_dir)
    revision = migrate.current(config.database.url, data_dir)
    if not revision:
        raise Finding("the database is not there yet: run tollgate up or tollgate migrate")
    if not settings.has_secret(data_dir):
        return f"revision {revision}"
    catalog = Catalog(
        open_engine(config.database.url, data_dir), settings.load_secret(config.data_dir)
    )
    version = catalog.opened_version()  # the secret opens what it holds
    return f"revision {revision}, catalog version {version}"


def _clock(config: Config) -> str:
    """A worker whose clock is further off the database's gets no money."""
    clock = SystemClock()
    try:
        engine = open_engine(config.database.url, Path(config.data_dir))
        read(engine, database_now_us)  # connected: the next one takes no time
        before_us = clock.now_us()
        now_us = read(engine, database_now_us)
        off_us = clock_off_us(before_us, now_us, clock.now_us())
    except (DatabaseUnavailable, OSError):
        return "unknown, for the database does not answer"
    if abs(off_us) > SLACK_US:
        raise Finding(
            f"{off_us / 1e6:+.1f} s off the database's: the workers of this host get no money"
        )
    return "agrees with the database's"


def _port(config: Config) -> str:
    """The edge's: free, or its own."""
    host, port = config.edge.host, config.edge.port
    try:
        with urllib.request.urlopen(base_url(config) + "/healthz", timeout=3) as reply:  # noqa: S310 - our own address
            server = reply.headers.get("server")
    except urllib.error.HTTPError as ex:
        server = ex.headers.get("server")
    except http.client.HTTPException:
        server = None
    except OSError:
        try:
            require_port(host, port)
        except click.ClickException as ex:
            raise Finding(ex.format_message()) from ex
        return f"port {port} of {host} is free"
    if server != "tollgate":
        raise Finding(f"another program listens on port {port} of {host}")
    return f"port {port} of {host} is the edge's"


def _bus(config: Config) -> str:
    bus = open_bus(config)
    try:
        bus.ensure_topics()
        forgets = bus.forgets(TOPIC)
    finally:
        bus.close()
    if forgets:
        raise Finding(
            f"the topic {config.bus.topic_prefix}{TOPIC} drops events in time ({forgets}): a "
            "rebuild and a reconciliation need all of them, and a meter that is behind stops"
        )
    return f"{config.bus.kind} answers and keeps every event"


def _roles(config: Config) -> str:
    roles = [role for role in ("relay", "ledger", "clickhouse") if alive(config, role)]
    return f"at work on this host: {', '.join(roles) or 'none'}"


def _queries(config: Config) -> str:
    if not alive(config, "clickhouse"):
        return "no analytics process runs: commands open the files themselves"
    QueryClient(config).health()
    return "the query API answers"


def _batch(config: Config) -> str:
    if settings.has_secret(config.data_dir) and is_healthy(
        PrivateClient(config, config.edge.batch_url)
    ):
        return "the batch service answers"
    if alive(config, "relay") and any(each.provider for each in channels(config)):
        raise Finding(f"nobody answers at {config.edge.batch_url}: jobs are refused with 503")
    return "the batch service does not run: no jobs, no batches"


def _edge(config: Config) -> str:
    edge = edge_url(config)
    url = edge + "/readyz"
    try:
        with urllib.request.urlopen(url, timeout=3) as reply:  # noqa: S310 - our own address
            ours = reply.headers.get("server") == "tollgate"
            return f"{edge} is {'ready' if ours else 'not ours'}"
    except urllib.error.HTTPError as ex:
        raise Finding(f"{url}: {ex.read(300).decode('utf-8', 'replace')}") from ex
    except OSError:
        return f"nothing listens on {edge}"


_CHECKS: Final[dict[str, Callable[[Config], str]]] = {
    "python": _python,
    "folder": _folder,
    "disk": _disk,
    "secret": _secret,
    "prices": _prices,
    "channels": _channels,
    "database": _database,
    "clock": _clock,
    "port": _port,
    "bus": _bus,
    "roles": _roles,
    "queries": _queries,
    "batch": _batch,
    "edge": _edge,
}


@click.command(cls=Command)
@click.pass_obj
def doctor(cli: Cli) -> None:
    """Checks folder, disk, secrets, prices, channels, database, clock, port, bus and what runs.
    Exit code 1 when one is wrong."""
    config = cli.config()
    found = []
    for name, check in _CHECKS.items():
        try:
            found.append({"check": name, "ok": True, "detail": check(config)})
        except Exception as ex:  # whatever a check meets is its finding
            found.append({"check": name, "ok": False, "detail": " ".join(str(ex).split())})
    rows = [["ok" if each["ok"] else "WRONG", each["check"], each["detail"]] for each in found]
    cli.show(found, table(("", "check", "detail"), rows))
    if not all(each["ok"] for each in found):
        raise click.exceptions.Exit(1)
