"""OpenAI's synchronous media routes: a job, and a wait for it.

The answer is made from what lies in our store, so that what is charged was delivered. When the
client hangs up meanwhile its job is cancelled: free, unless it was finished already.
"""

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import falcon
import msgspec

from schemas.errors import Code
from services.backends.http.private_client import Answer
from services.backends.job_wire import FORMAT_HEADER
from services.core.access import REVOKED
from services.core.catalog import Key
from services.core.errors import InvalidRequest, Refusal
from services.edge.authenticated import Authenticated, Caller
from services.edge.body import read_body
from services.edge.jobs.forward import BODY_MAX, Forwarder, relay
from services.edge.lines import ENVIRON
from services.edge.snapshot import View
from services.edge.watch import ClientWatch

_WAIT_S: Final = 300.0
_LOOK_S: Final = 5.0
_IMAGE: Final = (
    "prompt", "n", "size", "aspect_ratio", "quality", "style", "background", "negative_prompt",
    "output_format", "output_compression", "seed",
)  # fmt: skip
_SPEECH: Final = ("input", "voice", "speed", "instructions")
_FAULTS: Final = {
    "safety_blocked": Code.CONTENT_POLICY_VIOLATION,
    "upstream_rejected": Code.INVALID_PARAM,
    "no_capacity": Code.NO_CAPACITY,
    "deadline_exceeded": Code.TIMEOUT,
}

Body = dict[str, Any]


class _Waiting(Authenticated):
    """A submission and the wait for it. `show` fills the response from the completed job, told how
    the client asked for it (`response_format`)."""

    body_max = BODY_MAX

    def __init__(self, forwarder: Forwarder, show: "Show") -> None:
        super().__init__(forwarder.worker)
        self.forwarder = forwarder
        self._show = show

    def submit(self, req: falcon.Request, caller: Caller, raw: bytes) -> tuple[Answer, str]:
        """The service's answer, and the response format. Raises Refusal."""
        raise NotImplementedError

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        def answer(caller: Caller) -> None:
            worker = self._worker
            raw = req.context.get("body")
            raw = self.body(req) if raw is None else raw
            permit = worker.rates.admit(caller.view.rules(caller.key).rates, 0)
            try:
                self._make(req, resp, caller, raw)
            finally:
                permit.end()

        self._serve(req, resp, answer)

    def body(self, req: falcon.Request) -> bytes:
        return read_body(req.env, self.body_max, self._worker.config.edge.body_timeout_s)

    def _make(self, req: falcon.Request, resp: falcon.Response, caller: Caller, raw: bytes) -> None:
        found, wanted = self.submit(req, caller, raw)
        if found.status not in (200, 202):
            relay(resp, found)
            return
        ours = found.status == 202 and ENVIRON not in req.env
        job = self._ended(req, caller, msgspec.json.decode(found.body()), ours=ours)
        if job["error"] is not None:
            raise _refusal(job["error"])
        self._show(self, req, resp, caller, wanted, job)

    def _ended(self, req: falcon.Request, caller: Caller, job: Body, *, ours: bool) -> Body:
        """The job once it has ended. Raises Refusal when it took too long, the client hung up or
        its key was revoked; the job's end is asked for then, when it is `ours`: no other call may
        wait for it."""
        clock = self._worker.clock
        until_s = clock.monotonic_s() + _WAIT_S
        path = f"/v1/jobs/{job['id']}"
        with self.forwarder.watching(caller, job["id"]) as changed:
            watch = ClientWatch(req.env["gunicorn.socket"], changed.wake)
            try:
                while clock.monotonic_s() < until_s and not (watch.gone or changed.revoked):
                    if told := self.forwarder.seen(req, path, caller):
                        job = msgspec.json.decode(told)
                    if job["completed_at"]:
                        return job
                    changed.wait(_LOOK_S)
            finally:
                watch.close()
        if ours:
            self.forwarder.ask(req, "POST", f"{path}/cancel", caller, b"").close()
        if watch.gone:
            raise Refusal(Code.CLIENT_GONE, "the client hung up")
        if changed.revoked:
            raise Refusal(Code.INVALID_API_KEY, REVOKED)
        raise Refusal(Code.TIMEOUT, f"{job['id']} was not finished in {_WAIT_S:.0f} s")

    def content(self, req: falcon.Request, caller: Caller, output: Body) -> Any:
        """The bytes of an output, to be read once."""
        path = f"/v1/artifacts/{output['artifact_id']}/content"
        return self.forwarder.ask(req, "GET", path, caller, b"")


Show = Callable[[_Waiting, falcon.Request, falcon.Response, Caller, str, Body], None]


class SyncRoute(_Waiting):
    """POST of a JSON body, of which `to_input` makes a job's input. A line of a batch may call it
    too: its job has the line's name, so that a repeated call finds it, and lives on without the
    caller."""

    def __init__(
        self, forwarder: Forwarder, kind: str, to_input: Callable[[Body], Body], show: Show
    ) -> None:
        super().__init__(forwarder, show)
        self._kind = kind
        self._to_input = to_input

    def identify(self, req: falcon.Request, headers: Body) -> tuple[View, Key]:
        if ENVIRON not in req.env:
            return super().identify(req, headers)
        lines = self._worker.lines
        ticket = lines.ticket(req.env)
        req.context.body = self.body(req)
        lines.require_body(ticket, req.context.body)
        return lines.caller(ticket)

    def submit(self, req: falcon.Request, caller: Caller, raw: bytes) -> tuple[Answer, str]:
        body = _decoded(raw)
        for name, wanted in (("stream", True), ("stream_format", "sse")):
            if body.get(name) == wanted:
                raise InvalidRequest(f"{name}: this route answers at once", param=name)
        asked = {"model": body.get("model"), "kind": self._kind, "input": self._to_input(body)}
        raw = msgspec.json.encode(asked)
        made = self.forwarder.ask(req, "POST", "/v1/jobs", caller, raw, submits=True, flat=True)
        return made, str(body.get("response_format", ""))


class FormRoute(_Waiting):
    """POST of a body with files: the service reads it."""

    def __init__(self, forwarder: Forwarder, show: Show) -> None:
        super().__init__(forwarder, show)
        self.body_max = forwarder.worker.config.edge.max_body_bytes

    def submit(self, req: falcon.Request, caller: Caller, raw: bytes) -> tuple[Answer, str]:
        made = self.forwarder.ask(req, "POST", req.path, caller, raw, submits=True)
        return made, made.headers.get(FORMAT_HEADER, "")


def image_input(body: Body) -> Body:
    """Of POST /v1/images/generations."""
    found = {name: body[name] for name in _IMAGE if body.get(name) is not None}
    if body.get("source_image"):
        found["image"] = body["source_image"]
    return found


def speech_input(body: Body) -> Body:
    """Of POST /v1/audio/speech."""
    found = {name: body[name] for name in _SPEECH if body.get(name) is not None}
    if body.get("response_format"):
        found["format"] = body["response_format"]
    return found


def embedding_input(body: Body) -> Body:
    """Of POST /v1/embeddings: a text, as it is or as its tokens, or a list of these."""
    text = body.get("input")
    tokens = isinstance(text, list) and bool(text) and isinstance(text[0], int)
    is_one = isinstance(text, str) or tokens
    found: Body = {"input": [text] if is_one else text}
    for name in ("dimensions", "encoding_format"):
        if body.get(name) is not None:
            found[name] = body[name]
    return found


def rerank_input(body: Body) -> Body:
    """Of POST /v1/rerank."""
    names = ("query", "documents", "top_n")
    return {name: body[name] for name in names if body.get(name) is not None}


def show_images(
    route: _Waiting,
    req: falcon.Request,
    resp: falcon.Response,
    caller: Caller,
    wanted: str,
    job: Body,
) -> None:
    """Links, or the images themselves when `response_format` is b64_json."""
    inline = wanted == "b64_json"
    data = []
    for each in job["output"]:
        if inline:
            found = route.content(req, caller, each)
            if found.status != 200:
                relay(resp, found)
                return
            data.append({"b64_json": base64.b64encode(found.body()).decode()})
        else:
            data.append({"url": each["url"]})
    resp.data = msgspec.json.encode({"created": int(time.time()), "data": data})


def show_content(
    route: _Waiting,
    req: falcon.Request,
    resp: falcon.Response,
    caller: Caller,
    wanted: str,
    job: Body,
) -> None:
    """The one output as it is."""
    relay(resp, route.content(req, caller, job["output"][0]))


def _decoded(raw: bytes) -> Body:
    try:
        return msgspec.json.decode(raw, type=Body)
    except (msgspec.DecodeError, UnicodeDecodeError) as ex:
        raise InvalidRequest(f"the body is not a JSON object: {ex}") from ex
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def _refusal(error: Mapping[str, Any]) -> Refusal:
    """A job's error as the answer to a call that waited for it."""
    code = _FAULTS.get(error["code"], Code.UPSTREAM_ERROR)
    return Refusal(code, f"{error['code']}: {error['message']}")
