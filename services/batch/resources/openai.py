"""OpenAI's routes with files: the body becomes a job; the edge waits for it and shows what came.

Fields that are not known are left aside, as OpenAI's other routes do; those that would change what
comes back and cannot be had are refused.
"""

from collections.abc import Callable
from typing import Any, Final

import falcon

from services.backends.job_wire import FORMAT_HEADER
from services.batch.admit import Ask
from services.batch.resources.base import Service, idempotency_key, take_of, taken
from services.batch.resources.forms import Form, drop, received
from services.batch.resources.jobs import show
from services.core.errors import InvalidRequest

_IMAGE: Final = (
    "prompt", "n", "size", "quality", "background", "output_format", "output_compression", "seed",
    "image", "mask",
)  # fmt: skip
_TRANSCRIPTION: Final = ("file", "language", "prompt", "temperature")

Fields = dict[str, Any]


class FormResource:
    """POST of one of these routes: 202 and the job, 200 when it had been made before."""

    def __init__(
        self,
        service: Service,
        kind: str,
        to_params: Callable[[Fields], Fields],
        *files: str,
    ) -> None:
        self._service = service
        self._kind = kind
        self._to_params = to_params
        self._files = files

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        with received(self._service, req, *self._files) as form:
            if str(form.fields.get("stream", "")).lower() == "true":
                raise InvalidRequest("stream: this route answers at once", param="stream")
            ask = ask_of(self._service, req, form, self._kind, self._to_params(form.fields))
            made = self._service.admission.submit(self._service.key(req), ask)
        if made.replayed:
            drop(self._service, made.job.account_id, form)
        show(self._service, req, resp, made.job, 200 if made.replayed else 202)
        resp.set_header(FORMAT_HEADER, str(form.fields.get("response_format", ""))[:32])
        taken(self._service, resp, made)


def ask_of(service: Service, req: falcon.Request, form: Form, kind: str, params: Fields) -> Ask:
    """The submission that a form is. Raises InvalidRequest."""
    model = form.fields.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("model: name one", param="model")
    return Ask(
        model=model,
        params=params,
        source=req.path,
        where="",
        kind=kind,
        scope=f"account:{service.caller(req).account_id} {req.path}",
        idempotency_key=idempotency_key(req),
        body_bytes=req.content_length or 0,
        digests=form.digests,
        take=take_of(req),
    )


def edit_params(fields: Fields) -> Fields:
    """Of POST /v1/images/edits."""
    found = _named(fields, _IMAGE)
    if not found.get("image"):
        raise InvalidRequest("image: missing; send the image to edit", param="image")
    return found


def transcription_params(fields: Fields) -> Fields:
    """Of POST /v1/audio/transcriptions."""
    found = _named(fields, _TRANSCRIPTION)
    if "word" in str(fields.get("timestamp_granularities", "")):
        message = "timestamp_granularities: only segments have times"
        raise InvalidRequest(message, param="timestamp_granularities")
    wanted = fields.get("response_format") or "json"
    if wanted not in ("json", "text", "srt", "verbose_json", "vtt"):
        message = "response_format: write json, text, srt, verbose_json or vtt"
        raise InvalidRequest(message, param="response_format")
    if wanted != "json":
        found["format"] = wanted
    return found


def _named(fields: Fields, names: tuple[str, ...]) -> Fields:
    return {name: fields[name] for name in names if fields.get(name) not in (None, "")}
