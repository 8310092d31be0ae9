"""The gunicorn worker of the edge: gevent, one greenlet per client connection.

gunicorn supplies the process model (master, fork, heartbeat, reload) and the checked request head
(its policy against smuggling over a C parser). The loop around them is our own: it builds the
environ in a third of the time, renders refused heads as JSON, bounds the draining of bodies nobody
read, closes idle connections at once when it stops, and counts nothing.

An application may have two methods, called in this order when the worker stops: `cut()` at the end
of the grace period if answers still run, and `close()` after the last of them.
"""

import gc
import logging
import os
import socket
import sys
import time
import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import gevent
from gevent import monkey
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn import util
from gunicorn.http import errors as http_errors
from gunicorn.http.wsgi import FileWrapper
from gunicorn.workers.base import Worker
from gunicorn.workers.ggevent import GeventWorker
from setproctitle import setproctitle

from services.edge.http_environ import CheckedParser, ContinueInput, environ_of, unread
from services.edge.http_response import Response

log = logging.getLogger(__name__)

_STOP_POLL_S: Final = 0.1
_FIRST_S: Final = 2.0  # a stopping worker waits so long for the first request of a connection
_HEARTBEAT_S: Final = 1.0
_CUT_S: Final = 2.0
_DRAIN_BYTES_MAX: Final = 256 * 1024  # of a body nobody read, to keep the connection
_DRAIN_S: Final = 1.0
_LINGER_S: Final = 2.0  # reading on after an early answer, so that a reset does not destroy it

_REFUSALS: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (http_errors.LimitRequestLine, 414, "URI Too Long"),
    (http_errors.LimitRequestHeaders, 431, "Request Header Fields Too Large"),
    (http_errors.UnsupportedTransferCoding, 501, "Not Implemented"),
    (http_errors.ExpectationFailed, 417, "Expectation Failed"),
)


class TollgateWorker(GeventWorker):  # type: ignore[misc]
    """See the module's text. `self.app` is the `server.EdgeServer`."""

    alive: bool

    def init_process(self) -> None:
        setproctitle("tollgate: edge worker")
        super().init_process()

    def patch(self) -> None:
        with warnings.catch_warnings():
            # gunicorn's master imports ssl before the fork; nothing here subclasses its contexts.
            warnings.simplefilter("ignore", monkey.MonkeyPatchWarning)
            super().patch()

    def handle_quit(self, sig: int, frame: Any) -> None:
        # Ctrl-C reaches the whole process group: SIGINT and SIGQUIT drain like SIGTERM.
        self.handle_exit(sig, frame)

    def run(self) -> None:
        self._idle: dict[Any, float] = {}  # clients between requests -> when they must have asked
        self._new: set[Any] = set()  # those of them that have not asked anything yet
        _tame_the_collector()
        # Plain attributes: gunicorn's settings object looks each one up in a dict of objects.
        self._settings = SimpleNamespace(
            **{name: setting.get() for name, setting in self.cfg.settings.items()},
            is_ssl=self.cfg.is_ssl,
        )
        servers = [self._listen(sock) for sock in self.sockets]
        beat_at = 0.0
        while self.alive:
            now = time.monotonic()
            if now >= beat_at:
                beat_at = now + _HEARTBEAT_S
                Worker.notify(self)
                self._drop_idle(now)
                if os.getppid() != self.ppid:
                    log.warning("the master is gone, stopping")
                    self.alive = False
            gevent.sleep(_STOP_POLL_S)
        self._drain(servers)

    def _drop_idle(self, now: float) -> None:
        # One sweep a second instead of a timer for every request, which costs 4 % of the CPU.
        for client in [client for client, until in self._idle.items() if now > until]:
            _shut(client, socket.SHUT_RDWR)

    def _listen(self, sock: Any) -> StreamServer:
        sock.setblocking(True)
        host, port = sock.getsockname()[:2]
        base = {
            "wsgi.errors": sys.stderr,
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": self.cfg.workers > 1,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
            "wsgi.url_scheme": "http",
            "SERVER_SOFTWARE": "tollgate",
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "SCRIPT_NAME": "",
        }
        pool = Pool(self.worker_connections)
        server = StreamServer(sock, handle=partial(self._connection, base), spawn=pool)
        if self.cfg.workers > 1:
            server.max_accept = 1
        server.start()
        return server

    def _drain(self, servers: list[StreamServer]) -> None:
        for server in servers:
            _accept_waiting(server)
            server.close()
        for client in self._idle.keys() - self._new:
            _shut(client, socket.SHUT_RD)  # what already arrived is still served
        gevent.spawn_later(_FIRST_S, self._drop_new)
        pools = [server.pool for server in servers]
        self._wait(pools, self.app.drain_s)
        if any(len(pool) for pool in pools):
            log.warning("answers cut at the end of the grace period: %d", sum(map(len, pools)))
            if hasattr(self.wsgi, "cut"):
                self.wsgi.cut()
                self._wait(pools, _CUT_S)
            for pool in pools:
                pool.kill(timeout=1)
        if hasattr(self.wsgi, "close"):
            self.wsgi.close()

    def _drop_new(self) -> None:
        for client in list(self._new):
            _shut(client, socket.SHUT_RD)

    def _wait(self, pools: list[Any], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(len(pool) for pool in pools) and time.monotonic() < deadline:
            Worker.notify(self)
            gevent.sleep(_STOP_POLL_S)

    def _connection(self, base: dict[str, Any], client: Any, address: Any) -> None:
        parser = CheckedParser(self._settings, client, address)
        self._new.add(client)
        try:
            while True:
                client.settimeout(None)
                req = self._next_request(parser, client)
                if req is None or not self._serve(base, parser, req, client, address):
                    return
        except http_errors.ParseException as error:
            _refuse(client, error)
        except OSError:
            pass  # the client is gone
        except Exception:
            log.exception("the connection failed")
        finally:
            util.close(client)

    def _next_request(self, parser: Any, client: Any) -> Any:
        """The next request head, or None when the connection ends or stays idle too long."""
        self._idle[client] = time.monotonic() + self._settings.keepalive
        try:
            if not self.alive and client not in self._new:
                _shut(client, socket.SHUT_RD)
            return next(parser)
        except StopIteration:
            return None
        finally:
            del self._idle[client]
            self._new.discard(client)

    def _serve(
        self, base: dict[str, Any], parser: Any, req: Any, client: Any, address: Any
    ) -> bool:
        """One request. False when the connection cannot serve another."""
        environ = environ_of(base, req, client, address)
        response = Response(req, client, not self.alive)
        try:
            blocks = self.wsgi(environ, response.start_response)
            try:
                for block in blocks:
                    response.write(block)
                response.close()
            finally:
                if hasattr(blocks, "close"):
                    blocks.close()
        except OSError:
            return False  # the client is gone
        except http_errors.ParseException:
            if response.sent:
                return False
            raise
        except Exception:
            log.exception("the application failed on %s %s", req.method, req.path)
            if not response.sent:
                _send_error(
                    client, 500, "Internal Server Error", "internal_error", "internal error"
                )
            return False  # a cut answer is how the client learns of it
        if unread(req.body) and not _drain_body(parser, environ, response):
            _linger(client)
            return False
        return not response.close_after


def _accept_waiting(server: StreamServer) -> None:
    """Takes the connections that the system has made already: closing would reset them."""
    while not server.full() and (accepted := server.do_read()):
        server.do_handle(*accepted)


def _tame_the_collector() -> None:
    """What exists now lives as long as the process: collections need not look at it, and can be
    rarer, for a request leaves next to no cycles. Saves 5 to 9 % of the CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _drain_body(parser: Any, environ: dict[str, Any], response: Response) -> bool:
    """Reads what is left of a small body, so that the connection can go on."""
    body = environ["wsgi.input"]
    if response.close_after or (isinstance(body, ContinueInput) and not body.wanted):
        return False
    done: bool = parser.finish_body(time.monotonic() + _DRAIN_S, _DRAIN_BYTES_MAX)
    return done


def _linger(client: Any) -> None:
    """Ends our side and reads on for a moment: closing with unread data would send a reset, and
    the client might lose the answer it was sent."""
    _shut(client, socket.SHUT_WR)
    with gevent.Timeout(_LINGER_S, False):
        while client.recv(65536):
            pass


def _shut(client: Any, how: int) -> None:
    try:
        client.shutdown(how)
    except OSError:
        pass  # not connected any more


def _refuse(client: Any, error: Exception) -> None:
    """Answers a request head or body that is not HTTP, or passes a limit."""
    status, reason = 400, "Bad Request"
    for kind, code, text in _REFUSALS:
        if isinstance(error, kind):
            status, reason = code, text
    log.info("refused a malformed request: %s", type(error).__name__)
    _send_error(client, status, reason, "invalid_param", f"malformed HTTP request: {reason}")
    _linger(client)


def _send_error(client: Any, status: int, reason: str, code: str, message: str) -> None:
    kind = "invalid_request_error" if status < 500 else "api_error"
    body = f'{{"error":{{"type":"{kind}","code":"{code}","message":"{message}"}}}}'
    head = (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    try:
        client.settimeout(_LINGER_S)
        client.sendall((head + body).encode("ascii"))
    except OSError:
        pass  # the client is gone
