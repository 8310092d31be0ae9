"""Opens what commands work on. The only file of the command line that names concrete adapters."""

import hashlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from schemas import config as shape
from schemas.config import Config
from services import backends
from services.backends import price_files, settings
from services.backends.clock import SystemClock
from services.backends.settings import under
from services.backends.sql.accounts import Accounts
from services.backends.sql.catalog import Catalog
from services.backends.sql.engine import open_engine
from services.backends.sql.wallets import Wallets
from services.core.prices import PriceVersion

_APPLIED: Final = "run/applied"
_SIM_DIALECTS: Final = {
    "anthropic": ("anthropic",),
    "chat": ("openai", "google", "deepseek", "moonshot", "zhipu", "minimax"),
    "responses": ("openai",),
}


class Books(NamedTuple):
    """The SQL database behind the commands."""

    catalog: Catalog
    wallets: Wallets
    accounts: Accounts


def open_books(config: Config) -> Books:
    """The database, made and filled from the configuration when it is embedded and not there yet.

    Raises DatabaseUnavailable."""
    if is_embedded(config) and not _embedded_file(config).exists():
        apply(config)
    engine = open_engine(config.database.url, Path(config.data_dir))
    catalog = Catalog(engine, settings.load_secret(config.data_dir))
    return Books(catalog, Wallets(engine), Accounts(engine))


def apply(config: Config) -> PriceVersion:
    """Migrates the database and makes its channels, groups and prices what the configuration and
    the price files say. Raises DatabaseUnavailable, ConfigError, PriceFileError."""
    from services.backends.sql import migrate  # slow to import, and seldom needed

    data_dir = Path(config.data_dir)
    migrate.upgrade(config.database.url, data_dir)
    engine = open_engine(config.database.url, data_dir)
    try:
        catalog = Catalog(engine, settings.load_secret(config.data_dir))
        now_us = SystemClock().now_us()
        return catalog.sync(channels(config), config.groups, price_files.load(), now_us)
    finally:
        engine.dispose()


def channels(config: Config) -> Sequence[shape.Channel]:
    """The configured channels, else the simulated provider's, with every model of the price
    list."""
    if config.channels:
        return config.channels
    models = price_files.load()
    return [
        shape.Channel(
            name=f"sim-{dialect}",
            dialect=dialect,  # type: ignore[arg-type]
            base_url=sim_url(config),
            models=[name for name, model in models.items() if model.vendor in vendors],
            groups=["default", *(group.name for group in config.groups if group.name != "default")],
        )
        for dialect, vendors in _SIM_DIALECTS.items()
    ]


def wants_sim(config: Config) -> bool:
    """Whether a channel points at the simulated provider that `up` would start."""
    return not config.channels or any(
        channel.base_url.startswith(sim_url(config)) for channel in config.channels
    )


def sim_url(config: Config) -> str:
    """The base URL of the simulated provider."""
    return f"http://{host_in_url(config.sim.host)}:{config.sim.port}"


def host_in_url(host: str) -> str:
    """A host as a URL has it; one that listens everywhere is reached on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not a binding
    return f"[{host}]" if ":" in host else host


def free_port(host: str) -> int:
    """A port that nobody listens on at the moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_embedded(config: Config) -> bool:
    """Whether the SQL database is a file of this machine."""
    return config.database.url.startswith("sqlite")


def is_applied(config: Config, mark: str) -> bool:
    """Whether an embedded database was brought to the state that `mark` tells, so that `apply`
    would change nothing."""
    file = under(config, _APPLIED)
    if not is_embedded(config) or not _embedded_file(config).exists() or not file.exists():
        return False
    return file.read_text("utf-8") == mark


def set_applied(config: Config, mark: str) -> None:
    """Remembers that `apply` brought the database to the state of `mark`."""
    under(config, _APPLIED).write_text(mark, "utf-8")


def mark_of(config: Config) -> str:
    """A hash of all that `apply` reads: channels, groups, price data, migrations."""
    digest = hashlib.sha256(config.database.url.encode())
    digest.update(msgspec.json.encode([list(channels(config)), config.groups]))
    for each in channels(config):
        digest.update(hashlib.sha256(settings.resolve_secret(each.credential).encode()).digest())
    migrations = Path(backends.__path__[0]) / "sql" / "migrations"
    for file in sorted([*price_files.built_in_folder().glob("*.toml"), *migrations.rglob("*.py")]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _embedded_file(config: Config) -> Path:
    return under(config, config.database.url.removeprefix("sqlite:///"))
