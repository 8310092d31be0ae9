"""Serves a private API with waitress: on a unix socket, and on TCP when asked to."""

import threading
from pathlib import Path
from typing import Any, Final

import falcon
import waitress
from waitress import wasyncore

from services.backends import settings
from services.backends.http.unix_socket import is_listened_on, short_name
from services.backends.telemetry import get_logger

_LOOP_S: Final = 0.25
_CONNECTIONS: Final = 1000
# What is made faster than its reader takes it waits in files: it keeps no thread.
_WAITING_BYTES: Final = 1 << 40


class PrivateServer:
    """Listens from its making on; `run` answers until it is told to stop. `setting` names in the
    configuration what a refusal is about: `<setting>socket`, `<setting>listen`.

    Raises ConfigError for a socket path or an address that cannot be used."""

    def __init__(
        self, app: falcon.App, socket_path: Path, listen: str, *, threads: int, setting: str
    ) -> None:
        self._map: dict[int, Any] = {}
        self._threads = threads
        self._setting = setting
        self.socket_path = socket_path
        address = _address(listen, setting)
        self._servers = [self._unix(app, socket_path)]
        if address is not None:
            self._servers.append(self._tcp(app, *address))

    @property
    def tcp_port(self) -> int:
        """The port of the TCP listener, 0 without one."""
        return int(self._servers[1].effective_port) if len(self._servers) > 1 else 0

    def run(self, stop: threading.Event) -> None:
        get_logger().info("api_listens", socket=str(self.socket_path), port=self.tcp_port)
        try:
            while not stop.is_set():
                wasyncore.loop(timeout=_LOOP_S, use_poll=True, map=self._map, count=1)
        finally:
            for server in self._servers:
                server.task_dispatcher.shutdown(cancel_pending=True, timeout=5)
            wasyncore.close_all(self._map, ignore_all=True)
            self.socket_path.unlink(missing_ok=True)

    def _unix(self, app: falcon.App, path: Path) -> Any:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return self._listening(app, path)
        except OSError as ex:
            raise settings.ConfigError(f"{self._setting}socket: {path}: {ex.strerror}") from ex

    def _listening(self, app: falcon.App, path: Path) -> Any:
        with short_name(path) as name:
            if is_listened_on(name):  # else it would be left without its socket, and not know it
                raise settings.ConfigError(
                    f"{self._setting}socket: another process listens on {path}"
                )
            return waitress.create_server(
                app,
                map=self._map,
                unix_socket=name,
                unix_socket_perms="600",
                threads=self._threads,
                connection_limit=_CONNECTIONS,
                outbuf_high_watermark=_WAITING_BYTES,
                ident=None,
            )

    def _tcp(self, app: falcon.App, host: str, port: int) -> Any:
        return waitress.create_server(
            app,
            map=self._map,
            host=host,
            port=port,
            threads=self._threads,
            connection_limit=_CONNECTIONS,
            outbuf_high_watermark=_WAITING_BYTES,
            ident=None,
        )


def _address(listen: str, setting: str) -> tuple[str, int] | None:
    if not listen:
        return None
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise settings.ConfigError(f"{setting}listen: write host:port")
    return host, int(port)
