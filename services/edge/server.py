"""Starts the edge: gunicorn with the settings the request path needs.

One master, `edge.workers` gevent workers. The application is imported in the master, so that the
workers share its code and start at once, and made in each worker, after gevent has patched the
standard library: nothing that it imports may bind what gevent patches, or load a database driver.
"""

import importlib
import logging
import math
import resource
from collections.abc import Callable
from typing import Any, Final

from gunicorn import glogging
from gunicorn.app.base import BaseApplication
from setproctitle import setproctitle

from schemas.config import Config
from services.edge.http_worker import TollgateWorker

CONNECTIONS: Final = 10_000  # clients per worker; each may hold an upstream connection too
KEEPALIVE_S = 75  # a client may idle so long, or take so long for a request head
_SPARE_FILES: Final = 1_000
_EXIT_S: Final = 6  # from the end of the grace period to SIGKILL


class EdgeServer(BaseApplication):  # type: ignore[misc]
    """The gunicorn application. `factory` is `module:function`, config -> WSGI application."""

    def __init__(self, config: Config, factory: str) -> None:
        self.config = config
        self.drain_s = config.edge.graceful_timeout_s
        module, _, name = factory.partition(":")
        self._make: Callable[[Config], Any] = getattr(importlib.import_module(module), name)
        super().__init__()

    def load_config(self) -> None:
        for name, value in _settings(self.config).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self._make(self.config)


class StandardLogging(glogging.Logger):  # type: ignore[misc]
    """gunicorn's messages through the process's own logging; no access log."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True
        self.error_log.setLevel(logging.NOTSET)


def serve(config: Config, factory: str = "services.edge.bootstrap:create_app") -> None:
    """Runs the edge in this process until SIGTERM or SIGINT, then drains and exits it."""
    EdgeServer(config, factory).run()


def _settings(config: Config) -> dict[str, Any]:
    edge = config.edge
    return {
        "bind": [f"[{edge.host}]:{edge.port}" if ":" in edge.host else f"{edge.host}:{edge.port}"],
        "backlog": 2048,
        "workers": edge.workers,
        "worker_class": TollgateWorker,
        "worker_connections": _raise_file_limit(),
        "keepalive": KEEPALIVE_S,
        "graceful_timeout": math.ceil(edge.graceful_timeout_s) + _EXIT_S,
        "timeout": 60,  # a worker whose loop stands still so long is killed
        "http_parser": "auto",  # gunicorn-h1c where it could be built
        "limit_request_line": 8190,
        "limit_request_fields": 200,
        "limit_request_field_size": 32_768,  # coding agents send JSON metadata in headers
        "header_map": "drop",  # of names with underscores, but for http_worker's own list
        "logger_class": StandardLogging,
        "control_socket_disable": True,
        "proc_name": "tollgate",
        # Here, because gunicorn sets a title of its own after `when_ready`.
        "pre_fork": lambda arbiter, worker: setproctitle("tollgate: edge"),
    }


def _raise_file_limit() -> int:
    """Raises the limit of open files as far as needed. Returns the connections it allows."""
    wanted = 2 * CONNECTIONS + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, wanted)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
        soft = min(wanted, hard)
    return max(100, min(CONNECTIONS, (soft - _SPARE_FILES) // 2))
