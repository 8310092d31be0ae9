"""`/v1/files`: inputs that clients upload; what they are is found from their bytes."""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import falcon

from schemas.errors import Code
from services.backends.objects.port import CHUNK, Draft, NotStored, TooLarge
from services.backends.sql.job_rows import storable
from services.backends.sql.uploads import BATCH, JSONL, Upload
from services.batch.resources.base import Service, answer, send_stored
from services.core.artifacts import ArtifactFacts, ArtifactInvalid, inspect
from services.core.batches import KEEP_S
from services.core.errors import InvalidRequest, Refusal

_NAME_MAX: Final = 256
_LIST_MAX: Final = 200
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS: Final = ("purpose", _ANCHOR, _SECONDS)


class FilesResource:
    """POST (multipart: `file`, `purpose`) and GET /v1/files."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        account_id = self._service.caller(req).account_id
        most = self._service.parts.config.artifacts.account_files_bytes
        if self._service.parts.uploads.kept_bytes(account_id) >= most:
            message = f"the account keeps {most} bytes of files: delete some first"
            raise Refusal(Code.REQUEST_TOO_LARGE, message)
        name, draft, fields = self._received(req)
        try:
            keep_s = _keep_s(fields)
        except InvalidRequest:
            self._service.parts.store.drop(draft)
            raise
        purpose = fields.get("purpose", "")
        answer(resp, _view(keep(self._service, account_id, name, purpose, draft, keep_s)))

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        account_id = self._service.caller(req).account_id
        limit = min(req.get_param_as_int("limit", min_value=1) or _LIST_MAX, _LIST_MAX)
        order = req.get_param("order") or "desc"
        if order not in ("asc", "desc"):
            raise InvalidRequest("order: write asc or desc", param="order")
        uploads, after = self._service.parts.uploads, req.get_param("after")
        last = uploads.get(account_id, after) if after else None
        if after and last is None:
            raise _unknown()
        found = uploads.listed(
            account_id,
            limit + 1,
            req.get_param("purpose") or "",
            after=last,
            oldest_first=order == "asc",
        )
        data = [_view(each) for each in found[:limit]]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        answer(resp, {"object": "list", "data": data, "has_more": len(found) > limit} | ends)

    def _received(self, req: falcon.Request) -> tuple[str, Draft, dict[str, str]]:
        """Name and bytes of the part `file`, and the other fields. Raises Refusal."""
        if not (req.content_type or "").startswith("multipart/form-data"):
            raise InvalidRequest("send multipart/form-data with a part `file`", param="file")
        fields: dict[str, str] = {}
        name = ""
        draft: Draft | None = None
        for part in parts_of(req):
            if part.name in _FIELDS:
                fields[part.name] = part.stream.read(_NAME_MAX).decode("utf-8", "replace")
            elif part.name == "file" and draft is None:
                name, draft = str(part.filename or "file"), receive(self._service, part)
        if draft is None:
            raise InvalidRequest("the part `file` is missing", param="file")
        return name, draft, fields


class FileResource:
    """GET and DELETE /v1/files/{id}, GET /v1/files/{id}/content."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        account_id = self._service.caller(req).account_id
        found = self._service.parts.uploads.get(account_id, file_id)
        if found is None:
            raise _unknown()
        answer(resp, _view(found))

    def on_get_content(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        account_id = self._service.caller(req).account_id
        found = self._service.parts.uploads.get(account_id, file_id)
        if found is None:
            raise _unknown()
        send_file(self._service, req, resp, found)

    def on_delete(self, req: falcon.Request, resp: falcon.Response, file_id: str) -> None:
        account_id = self._service.caller(req).account_id
        if not self._service.parts.uploads.delete(account_id, file_id):
            raise _unknown()
        answer(resp, {"id": file_id, "object": "file", "deleted": True})


def send_file(service: Service, req: falcon.Request, resp: falcon.Response, upload: Upload) -> None:
    """The bytes of an upload. Raises Refusal."""
    try:
        send_stored(service, req, resp, upload.sha256, 0, upload.bytes)
    except NotStored as ex:
        raise Refusal(Code.INTERNAL_ERROR, "the file's bytes are not there") from ex
    resp.content_type = upload.mime
    resp.set_header("x-content-type-options", "nosniff")
    resp.set_header("content-security-policy", "sandbox; default-src 'none'")


def parts_of(req: falcon.Request) -> Iterator[Any]:
    """Of a multipart body. Raises InvalidRequest, HTTPError."""
    for part in req.get_media():
        try:
            _ = part.name, part.filename
        except UnicodeDecodeError as ex:
            raise InvalidRequest("names in a form must be UTF-8") from ex
        yield part


def receive(service: Service, part: Any) -> Draft:
    """The bytes of one part of a multipart body. Raises Refusal, StoreUnavailable."""
    limit = service.parts.config.artifacts.upload_max_bytes
    try:
        return service.parts.store.receive(_pieces(part.stream), limit)
    except TooLarge as ex:
        raise Refusal(Code.REQUEST_TOO_LARGE, f"the file has {ex}") from ex


def keep(
    service: Service,
    account_id: str,
    name: str,
    purpose: str,
    draft: Draft,
    keep_s: int | None = None,
) -> Upload:
    """A file of the account, once its bytes are something usable; lines of a batch are looked at
    when it begins. `keep_s` seconds; None: as long as artifacts. Raises InvalidRequest,
    StoreUnavailable."""
    store = service.parts.store
    try:
        facts = _facts(draft, purpose)
        store.keep(draft)
    finally:
        store.drop(draft)
    return service.parts.uploads.add(
        account_id,
        storable(name[:_NAME_MAX]),
        storable(purpose),
        facts.mime,
        draft.size,
        draft.sha256,
        facts.duration_ms,
        keep_s or service.parts.config.artifacts.retention_s,
    )


def _facts(draft: Draft, purpose: str) -> ArtifactFacts:
    if purpose == BATCH:
        return ArtifactFacts(mime=JSONL, kind="text", bytes=draft.size)
    with open(draft.path, "rb") as file:
        try:
            return inspect(file, draft.size)
        except ArtifactInvalid as ex:
            message = f"file: it is no image, film or sound that can be used: {ex}"
            raise InvalidRequest(message, param="file") from ex


def _keep_s(fields: dict[str, str]) -> int | None:
    """How long the client wants it kept. Raises InvalidRequest."""
    if _ANCHOR not in fields and _SECONDS not in fields:
        return None
    anchor, seconds = fields.get(_ANCHOR, ""), fields.get(_SECONDS, "")
    if anchor == "created_at" and re.fullmatch("[0-9]{4,7}", seconds) and int(seconds) in KEEP_S:
        return int(seconds)
    message = f"expires_after: {KEEP_S[0]} to {KEEP_S[-1]} seconds after created_at"
    raise InvalidRequest(message, param="expires_after")


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    while piece := stream.read(CHUNK):
        yield piece


def _view(upload: Upload) -> dict[str, Any]:
    return {
        "id": upload.id,
        "object": "file",
        "bytes": upload.bytes,
        "created_at": upload.created_at // 1_000_000,
        "expires_at": upload.expires_at // 1_000_000,
        "filename": upload.name,
        "purpose": upload.purpose,
        "mime": upload.mime,
        "status": "processed",
    }


def _unknown() -> Refusal:
    return Refusal(Code.NOT_FOUND, "not_found: this account has no such file")
