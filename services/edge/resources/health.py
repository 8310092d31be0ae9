"""`/`, `/healthz`, `/readyz`, `/metrics`."""

from typing import Final

import falcon
import orjson

from services.backends import telemetry
from services.core.addresses import networks, parse_address
from services.core.ids import uuid7_text
from services.edge.headers import accounting
from services.edge.worker import Worker

_LOOPBACK: Final = networks(("127.0.0.0/8", "::1"))


class RootResource:
    """Claude Code probes `HEAD /` when it starts."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = b'{"name":"tollgate","docs":"/v1/models"}'
        resp.content_type = "application/json"
        resp.set_headers(_nothing_spent())

    on_head = on_get


class LiveResource:
    """200 as long as the process answers."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = b'{"status":"live"}'
        resp.content_type = "application/json"
        resp.set_headers(_nothing_spent())

    on_head = on_get


class ReadyResource:
    """200 when the first admitted request would be billed, else 503 and what is missing. `checks`
    tells of what it can do without: `batch`, without which jobs and batches answer 503."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        missing = self._worker.not_ready()
        resp.status = 503 if missing else 200
        body = {
            "status": "not ready" if missing else "ready",
            "missing": missing,
            "checks": {"batch": self._worker.batch_state()},
        }
        resp.data = orjson.dumps(body)
        resp.content_type = "application/json"
        resp.set_headers(_nothing_spent())

    on_head = on_get


class MetricsResource:
    """Prometheus text of every process on this host; for callers on this machine only, unless a
    proxy in front decides otherwise."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        if not is_this_machine(req.env.get("REMOTE_ADDR", "")):
            raise falcon.HTTPNotFound
        resp.data = telemetry.exposition()
        resp.content_type = "text/plain; version=0.0.4; charset=utf-8"


def _nothing_spent() -> list[tuple[str, str]]:
    """The accounting headers of an answer that nobody's key asked for."""
    return accounting(remaining_nano=0, estimate_credits=0, request_id=uuid7_text())


def is_this_machine(text: str) -> bool:
    """Whether an address is one of loopback, an IPv4 one inside IPv6 too."""
    address = parse_address(text)
    return address is not None and bool(_LOOPBACK.find(address))
