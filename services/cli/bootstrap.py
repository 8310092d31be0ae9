"""Opens what commands work on. The only file of the command line that names concrete adapters."""

import time
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine

from schemas.config import Config
from services.backends import price_files, settings
from services.backends.clock import SystemClock
from services.backends.sql import revision
from services.backends.sql.accounts import Accounts
from services.backends.sql.catalog import Catalog
from services.backends.sql.catalog_readers import CatalogReaders, wait_for_readers
from services.backends.sql.engine import open_engine
from services.backends.sql.wallets import Wallets
from services.cli.installation import channels, is_embedded, set_applied
from services.core.prices import PriceVersion


class Books(NamedTuple):
    """The SQL database behind the commands."""

    catalog: Catalog
    wallets: Wallets
    accounts: Accounts
    readers: CatalogReaders

    def reach_workers(self) -> None:
        """Returns when the running workers act on what was changed, after a second at the
        latest; at once when none runs."""
        version = self.readers.version()
        wait_for_readers(lambda: self.readers.behind(version), time.sleep)


def open_books(config: Config) -> Books:
    """The database, made and filled from the configuration when it is embedded and empty.

    Raises DatabaseUnavailable, SchemaTooOld."""
    engine = open_engine(config.database.url, Path(config.data_dir))
    if is_embedded(config) and not revision.of(engine):
        apply(config)
    revision.require(engine)
    catalog = Catalog(engine, settings.load_secret(config.data_dir))
    return Books(catalog, Wallets(engine), Accounts(engine), CatalogReaders(engine))


def open_database(config: Config) -> Engine:
    """The database of an installation. Raises DatabaseUnavailable, SchemaTooOld."""
    engine = open_engine(config.database.url, Path(config.data_dir))
    revision.require(engine)
    return engine


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
        version = catalog.sync(channels(config), config.groups, price_files.load(), now_us)
    finally:
        engine.dispose()
    set_applied(config)
    return version
