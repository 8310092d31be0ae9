"""What every route of the batch service does: who calls, what was sent, which links to give."""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, TypeVar

import falcon
import msgspec

from schemas.errors import SHAPES, Code
from services.backends.identity import HEADER, Identity, identities
from services.backends.job_wire import (
    HOLD_HEADER,
    ORIGIN_HEADER,
    PIECE,
    STORED_HEADER,
    TAKE_HEADER,
    read_take,
)
from services.backends.objects.port import CHUNK
from services.backends.signed import NotAuthentic
from services.backends.sql.job_records import Artifact, Job, Submitted
from services.batch.admit import Admission
from services.batch.engine import JobEngine
from services.batch.links import Links, LinkSigner
from services.batch.parts import Parts
from services.core.batches import MESSAGES
from services.core.catalog import Key
from services.core.dialects import DIALECTS
from services.core.errors import InvalidRequest, Refusal
from services.core.ids import uuid7_text
from services.core.jobs import TERMINAL

T = TypeVar("T")

BODY_MAX: Final = 1024 * 1024
_PIECE: Final = 64 * 1024
_NAME_MAX: Final = 256
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")


class Service:
    """What the routes share, made once per process."""

    def __init__(self, parts: Parts, engine: JobEngine, signer: LinkSigner, secret: bytes) -> None:
        self.parts = parts
        self.engine = engine
        self.signer = signer
        self.admission = Admission(parts)
        self._identities = identities(secret)

    def caller(self, req: falcon.Request) -> Identity:
        """Who calls, as the edge has signed it. Raises Refusal."""
        try:
            return self._identities.verify(req.get_header(HEADER), self.parts.clock.now_us())
        except NotAuthentic as ex:
            raise Refusal(Code.INVALID_API_KEY, str(ex)) from ex

    def key(self, req: falcon.Request) -> Key:
        """The caller's key. Raises Refusal."""
        return self.admission.key(self.caller(req).key_id)

    def links(self, req: falcon.Request) -> Links:
        """Links below the public address, else below the one that the client came to."""
        public = self.parts.config.artifacts.public_url
        return Links(self.signer, public or req.get_header(ORIGIN_HEADER) or "")

    def artifacts(self, job: Job) -> list[Artifact]:
        return self.parts.jobs.artifacts([job.id]) if job.phase in TERMINAL else []


def read_body(req: falcon.Request, limit: int = BODY_MAX) -> bytes:
    """The whole body. Raises Refusal(REQUEST_TOO_LARGE)."""
    if (req.content_length or 0) > limit:
        raise _too_large(limit)
    body: bytes = req.bounded_stream.read(limit + 1)
    if len(body) > limit:
        raise _too_large(limit)
    return body


def take_of(req: falcon.Request) -> tuple[str, bool]:
    """The id that the edge chose for the job to be made (empty: none), and whether it asks once
    more, because no answer came."""
    return read_take(req.get_header(TAKE_HEADER) or "")


def idempotency_key(req: falcon.Request) -> str:
    """The client's name for its submission; empty without one. Raises InvalidRequest."""
    found = req.get_header("idempotency-key") or ""
    if len(found) > _NAME_MAX:
        message = f"idempotency-key: at most {_NAME_MAX} characters"
        raise InvalidRequest(message, param="idempotency-key")
    return found


def decode(body: bytes, shape: type[T]) -> T:
    """The body as `shape`. Raises InvalidRequest with the path of the wrong field."""
    try:
        return msgspec.json.decode(body or b"{}", type=shape)
    except msgspec.ValidationError as ex:
        what, _, path = str(ex).partition(" - at `$")
        path = path.rstrip("`").lstrip(".")
        missing = _MISSING.match(what)
        if missing is not None:
            what, path = "missing", f"{path}.{missing[1]}".lstrip(".")
        message = f"{path}: {what}" if path else what
        raise InvalidRequest(message, param=path or None) from ex
    except (msgspec.DecodeError, UnicodeDecodeError) as ex:
        raise InvalidRequest(f"the body is not JSON: {ex}") from ex
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def send_stored(
    service: Service,
    req: falcon.Request,
    resp: falcon.Response,
    sha256: str,
    first: int,
    size: int,
) -> None:
    """`size` bytes of the store from `first` on. The server sends a local file from its loop,
    without keeping a thread for it. What lies elsewhere the edge is told to ask for piece by piece,
    as its client takes it: else it would all be waiting here for a slow one. Raises NotStored,
    StoreUnavailable."""
    opened = size if size <= PIECE else 1
    file = service.parts.store.open(sha256, first, first + opened - 1 if size else None)
    if file.seekable():
        resp.content_length = size
        resp.stream = req.env["wsgi.file_wrapper"](file, CHUNK)
    elif size <= PIECE:
        resp.content_length = size
        resp.stream = _pieces(file)
    else:
        file.close()
        resp.set_header(STORED_HEADER, f"{sha256}:{first}:{size}")


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece


def answer(resp: falcon.Response, body: Any, status: int = 200) -> None:
    resp.status = status
    resp.content_type = falcon.MEDIA_JSON
    resp.data = msgspec.json.encode(body)


def taken(service: Service, resp: falcon.Response, made: Submitted) -> None:
    """What every submission is answered with, and its way into the queue. `HOLD_HEADER` is for the
    edge: the most that it can cost."""
    resp.set_header(HOLD_HEADER, str(made.job.hold_nano))
    if made.replayed:
        resp.set_header("idempotent-replayed", "true")
    else:
        service.engine.wake()


def refuse(resp: falcon.Response, refusal: Refusal, path: str = "") -> None:
    """The envelope of the route: OpenAI's, but for Anthropic's batches."""
    if refusal.retry_after_s is not None:
        resp.set_header("retry-after", str(refusal.retry_after_s))
    if path.startswith(MESSAGES):
        told = DIALECTS["anthropic"].render_error(
            refusal.code, refusal.message, request_id=uuid7_text(), status=refusal.status
        )
        answer(resp, msgspec.Raw(told), refusal.status)
        return
    error = {
        "type": SHAPES[refusal.code].openai_type,
        "code": refusal.code,
        "message": refusal.message,
        "param": refusal.param,
    }
    answer(resp, {"error": error}, refusal.status)


def _too_large(limit: int) -> Refusal:
    return Refusal(Code.REQUEST_TOO_LARGE, f"the request body is larger than {limit} bytes")
