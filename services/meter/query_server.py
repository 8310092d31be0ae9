"""Serves the query API with waitress: on the private unix socket, and on TCP when asked to."""

import os
import threading
from pathlib import Path
from typing import Any, Final

import falcon
import waitress
from waitress import wasyncore

from schemas.config import Config
from services.backends import settings
from services.backends.telemetry import get_logger

_THREADS: Final = 4
_LOOP_S: Final = 0.25
_MAX_SOCKET_PATH: Final = 107


class QueryServer:
    """Listens from its making on; `run` answers until it is told to stop.

    Raises ConfigError for a socket path or an address that cannot be used."""

    def __init__(self, config: Config, app: falcon.App) -> None:
        self._map: dict[int, Any] = {}
        self.socket_path = settings.under(config, config.meter.query_socket)
        listen = _address(config.meter.query_listen)
        self._servers = [self._unix(app, self.socket_path)]
        if listen is not None:
            self._servers.append(self._tcp(app, *listen))

    @property
    def tcp_port(self) -> int:
        """The port of the TCP listener, 0 without one."""
        return int(self._servers[1].effective_port) if len(self._servers) > 1 else 0

    def run(self, stop: threading.Event) -> None:
        get_logger().info("query_api_listens", socket=str(self.socket_path), port=self.tcp_port)
        try:
            while not stop.is_set():
                wasyncore.loop(timeout=_LOOP_S, use_poll=True, map=self._map, count=1)
        finally:
            for server in self._servers:
                server.task_dispatcher.shutdown(cancel_pending=True, timeout=5)
            wasyncore.close_all(self._map, ignore_all=True)
            self.socket_path.unlink(missing_ok=True)

    def _unix(self, app: falcon.App, path: Path) -> Any:
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise settings.ConfigError(
                f"meter.query_socket: {path} is longer than {_MAX_SOCKET_PATH} bytes"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        return waitress.create_server(
            app,
            map=self._map,
            unix_socket=str(path),
            unix_socket_perms="600",
            threads=_THREADS,
            ident=None,
        )

    def _tcp(self, app: falcon.App, host: str, port: int) -> Any:
        return waitress.create_server(
            app, map=self._map, host=host, port=port, threads=_THREADS, ident=None
        )


def _address(listen: str) -> tuple[str, int] | None:
    if not listen:
        return None
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise settings.ConfigError("meter.query_listen: write host:port")
    return host, int(port)
