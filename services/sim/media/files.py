"""Serves the bytes of an output, with the faults of a download."""

from hashlib import sha256
from typing import Final

import gevent

from services.sim.http import Connection, HungUp, Request
from services.sim.media import made, png
from services.sim.media.jobs import Job, JobStore, Served
from services.sim.media.picture import draw

_STATUSES: Final = {
    "artifact-404": 404,
    "artifact-410": 410,
    "artifact-403": 403,
    "artifact-500": 500,
}
_PIECE: Final = 1024
_FLOOD: Final = bytes(65_536)
_SECRETS: Final = "http://169.254.169.254/latest/meta-data/"
_KEPT_FACTS: Final = 16  # of the outputs of one job


def send_file(
    store: JobStore,
    connection: Connection,
    request: Request,
    job: Job,
    index: int,
    variant: str,
) -> None:
    """Output `index` of a job that has succeeded; `variant` is OpenAI's."""
    mime = job.ask.mime if variant == "video" else "image/png"
    for name, status in _STATUSES.items():
        if job.strikes(name):
            return connection.reply(status, [("content-type", "text/plain")], b"simulated\n")
    if index >= job.outputs:
        return connection.reply(404, [("content-type", "text/plain")], b"no such output\n")
    if job.strikes("artifact-redirect"):
        return connection.reply(302, [("location", request.target)], b"")
    if "artifact-private" in job.knobs.faults:
        return connection.reply(302, [("location", _SECRETS)], b"")
    if "artifact-huge" in job.knobs.faults:
        return _flood(connection, mime)
    if variant == "video":
        data = made.spoiled(job, index)
    else:
        data = png.encode(draw(job.identity(index)), job.ask.width, job.ask.height)
    _send(connection, job, mime, data)
    if variant == "video":
        job.served_count += 1
        store.totals["served"] += 1
        if len(job.served) < _KEPT_FACTS:
            job.served += (Served(index, len(data), sha256(data).hexdigest()),)
    return None


def _send(connection: Connection, job: Job, mime: str, data: bytes) -> None:
    head = [("content-type", mime)]
    faults = job.knobs.faults
    if job.strikes("artifact-truncated"):
        lines = f"HTTP/1.1 200 OK\r\ncontent-type: {mime}\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.status = 200
        connection.send_raw(lines.encode() + data[: len(data) // 2])
        raise HungUp
    if "artifact-slow" in faults or "artifact-no-length" in faults:
        connection.start(200, head)
        for at in range(0, len(data), _PIECE):
            connection.write(data[at : at + _PIECE])
            if "artifact-slow" in faults:
                connection.pause(faults["artifact-slow"] / 1000)
        return connection.finish()
    return connection.reply(200, head, data)


def _flood(connection: Connection, mime: str) -> None:
    """Never ends by itself; the client goes sooner or later."""
    connection.start(200, [("content-type", mime)])
    while True:
        connection.write(_FLOOD)
        gevent.sleep(0)
