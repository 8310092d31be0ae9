"""Artifacts: what they are, links to them, their bytes (whole or one range)."""

import re
from typing import Final

import falcon

from schemas.errors import Code
from services.backends.objects.port import NotStored
from services.backends.sql.job_records import Artifact
from services.batch.resources.base import Service, answer, refuse, send_stored
from services.batch.wire import moment, output_view
from services.core import etags
from services.core.errors import Refusal

_RANGE: Final = re.compile(r"bytes=(?=[0-9-]*[0-9])([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)
_SUFFIX: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "video/mp4": "mp4",
    "video/webm": "webm",
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "application/json": "json",
    "text/plain; charset=utf-8": "txt",
}


class ArtifactResource:
    """GET /v1/artifacts/{id}: what it is; POST .../url: a fresh link."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, artifact_id: str) -> None:
        found = _own(self._service, req, artifact_id)
        view = output_view(found, self._service.links(req))
        answer(resp, {"id": found.id, "object": "artifact", "job_id": f"job_{found.job_id}"} | view)

    def on_post_url(self, req: falcon.Request, resp: falcon.Response, artifact_id: str) -> None:
        found = _live(self._service, _own(self._service, req, artifact_id))
        link = self._service.links(req).sign(found)
        answer(resp, {"url": link.url, "url_expires_at": moment(link.expires_at)})


class ContentResource:
    """GET and HEAD /v1/artifacts/{id}/content with a key."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, artifact_id: str) -> None:
        send(self._service, req, resp, _own(self._service, req, artifact_id))

    on_head = on_get


class LinkResource:
    """GET and HEAD /a/{id}?e=&k=&s= with a signed link."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, artifact_id: str) -> None:
        until, number, signature = (req.get_param(name) or "" for name in "eks")
        if not self._service.signer.is_good(artifact_id, until, number, signature):
            refuse(resp, Refusal(Code.PERMISSION_DENIED, "this link is not valid, or not any more"))
            return
        found = self._service.parts.jobs.artifact(artifact_id)
        if found is None:
            raise Refusal(Code.NOT_FOUND, "not_found: no such artifact")
        send(self._service, req, resp, found[0])

    on_head = on_get


def send(service: Service, req: falcon.Request, resp: falcon.Response, artifact: Artifact) -> None:
    """The bytes, or the one range that was asked for; several ranges get the whole."""
    _live(service, artifact)
    etag = f'"{artifact.sha256}"'
    resp.set_headers(
        {
            "etag": etag,
            "accept-ranges": "bytes",
            "x-content-type-options": "nosniff",
            "content-security-policy": "sandbox; default-src 'none'",
            "content-disposition": f'inline; filename="{_name(artifact)}"',
            "cache-control": "private, max-age=3600",
        }
    )
    resp.content_type = artifact.mime
    if etags.names(req.get_header("if-none-match"), etag):
        resp.status = 304
        return
    first, last = 0, artifact.bytes - 1
    if match := _range(req, etag):
        bounds = _bounds(match, artifact.bytes)
        if bounds is None:
            resp.set_header("content-range", f"bytes */{artifact.bytes}")
            resp.status = 416
            resp.data = b""
            return
        first, last = bounds
        resp.status = 206
        resp.set_header("content-range", f"bytes {first}-{last}/{artifact.bytes}")
    size = last - first + 1
    if req.method == "HEAD":
        resp.content_length = size
        return
    try:
        send_stored(service, req, resp, artifact.sha256, first, size)
    except NotStored as ex:
        raise Refusal(Code.INTERNAL_ERROR, "the artifact's bytes are not there") from ex


def _range(req: falcon.Request, etag: str) -> re.Match[str] | None:
    """The one range that was asked for; None: the whole, also for what is no such range."""
    match = _RANGE.fullmatch(req.get_header("range") or "")
    if match is None or (req.get_header("if-range") or etag) != etag:
        return None
    start, end = match.groups()
    return None if start and end and int(end) < int(start) else match


def _bounds(match: re.Match[str], size: int) -> tuple[int, int] | None:
    """First and last byte; None when the range cannot be satisfied."""
    start, end = match.groups()
    if not start:
        return (max(0, size - int(end)), size - 1) if int(end) else None
    first = int(start)
    last = min(int(end), size - 1) if end else size - 1
    return (first, last) if first <= last and first < size else None


def _own(service: Service, req: falcon.Request, artifact_id: str) -> Artifact:
    found = service.parts.jobs.artifact(artifact_id)
    if found is None or found[1] != service.caller(req).account_id:
        raise Refusal(Code.NOT_FOUND, "not_found: this account has no such artifact")
    return found[0]


def _live(service: Service, artifact: Artifact) -> Artifact:
    gone = artifact.deleted_at is not None
    if gone or artifact.expires_at <= service.parts.clock.now_us():
        raise Refusal(Code.ARTIFACT_EXPIRED, "artifact_expired: it was kept as long as promised")
    return artifact


def _name(artifact: Artifact) -> str:
    return f"{artifact.id}.{_SUFFIX.get(artifact.mime, 'bin')}"
