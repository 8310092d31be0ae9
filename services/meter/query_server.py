"""Where the query API listens."""

from typing import Final

import falcon

from schemas.config import Config
from services.backends import settings
from services.backends.http.private_server import PrivateServer

_THREADS: Final = 4


class QueryServer(PrivateServer):
    """Raises ConfigError for a socket path or an address that cannot be used."""

    def __init__(self, config: Config, app: falcon.App) -> None:
        super().__init__(
            app,
            settings.under(config, config.meter.query_socket),
            config.meter.query_listen,
            threads=_THREADS,
            setting="meter.query_",
        )
