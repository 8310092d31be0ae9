"""OpenAI's synchronous media routes: a job, and a wait for it.

The answer is made from what lies in our store, so that what is charged was delivered. A client that
hangs up meanwhile loses nothing: its job stands in `/v1/jobs`.
"""

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import falcon
import msgspec

from schemas.errors import Code
from services.core.errors import InvalidRequest, Refusal
from services.edge.authenticated import Authenticated, Caller
from services.edge.body import read_body
from services.edge.jobs.forward import BODY_MAX, Forwarder, relay

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


class SyncRoute(Authenticated):
    """POST of one of these routes. `to_input` makes a job's input of the body; `show` fills the
    response from the completed job."""

    def __init__(
        self,
        forwarder: Forwarder,
        kind: str,
        to_input: Callable[[Body], Body],
        show: Callable[["SyncRoute", falcon.Request, falcon.Response, Caller, Body, Body], None],
    ) -> None:
        super().__init__(forwarder.worker)
        self.forwarder = forwarder
        self._kind = kind
        self._to_input = to_input
        self._show = show

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        def answer(caller: Caller) -> None:
            worker = self._worker
            raw = read_body(req.env, BODY_MAX, worker.config.edge.body_timeout_s)
            body = _decoded(raw)
            permit = worker.rates.admit(caller.view.rules(caller.key).rates, 0)
            try:
                self._make(req, resp, caller, body)
            finally:
                permit.end()

        self._serve(req, resp, answer)

    def _make(self, req: falcon.Request, resp: falcon.Response, caller: Caller, body: Body) -> None:
        asked = {"model": body.get("model"), "kind": self._kind, "input": self._to_input(body)}
        found = self.forwarder.ask(req, "POST", "/v1/jobs", caller, msgspec.json.encode(asked))
        if found.status not in (200, 202):
            relay(resp, found)
            return
        job = self._ended(req, caller, msgspec.json.decode(found.body()))
        if job["error"] is not None:
            raise _refusal(job["error"])
        self._show(self, req, resp, caller, body, job)

    def _ended(self, req: falcon.Request, caller: Caller, job: Body) -> Body:
        """The job once it has ended. Raises Refusal(TIMEOUT), the job's end asked for."""
        clock = self._worker.clock
        until_s = clock.monotonic_s() + _WAIT_S
        path = f"/v1/jobs/{job['id']}"
        with self.forwarder.feed.watching(job["id"].removeprefix("job_")) as changed:
            while clock.monotonic_s() < until_s:
                job = msgspec.json.decode(self.forwarder.ask(req, "GET", path, caller, b"").body())
                if job["completed_at"]:
                    return job
                changed.wait(_LOOK_S)
                changed.clear()
        self.forwarder.ask(req, "POST", f"{path}/cancel", caller, b"").close()
        raise Refusal(Code.TIMEOUT, f"{job['id']} was not finished in {_WAIT_S:.0f} s: cancelled")

    def content(self, req: falcon.Request, caller: Caller, output: Body) -> Any:
        """The bytes of an output, to be read once."""
        path = f"/v1/artifacts/{output['artifact_id']}/content"
        return self.forwarder.ask(req, "GET", path, caller, b"")


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
    """Of POST /v1/embeddings: text or a list of texts."""
    text = body.get("input")
    found: Body = {"input": [text] if isinstance(text, str) else text}
    if body.get("dimensions") is not None:
        found["dimensions"] = body["dimensions"]
    return found


def rerank_input(body: Body) -> Body:
    """Of POST /v1/rerank."""
    names = ("query", "documents", "top_n")
    return {name: body[name] for name in names if body.get(name) is not None}


def show_images(
    route: SyncRoute,
    req: falcon.Request,
    resp: falcon.Response,
    caller: Caller,
    body: Body,
    job: Body,
) -> None:
    """Links, or the images themselves when `response_format` is b64_json."""
    inline = body.get("response_format") == "b64_json"
    data = []
    for each in job["output"]:
        if inline:
            found = route.content(req, caller, each).body()
            data.append({"b64_json": base64.b64encode(found).decode()})
        else:
            data.append({"url": each["url"]})
    resp.data = msgspec.json.encode({"created": int(time.time()), "data": data})


def show_content(
    route: SyncRoute,
    req: falcon.Request,
    resp: falcon.Response,
    caller: Caller,
    body: Body,
    job: Body,
) -> None:
    """The one output as it is."""
    relay(resp, route.content(req, caller, job["output"][0]))


def _decoded(raw: bytes) -> Body:
    try:
        return msgspec.json.decode(raw, type=Body)
    except (msgspec.DecodeError, UnicodeDecodeError) as ex:
        raise InvalidRequest(f"the body is not a JSON object: {ex}") from ex


def _refusal(error: Mapping[str, Any]) -> Refusal:
    """A job's error as the answer to a call that waited for it."""
    code = _FAULTS.get(error["code"], Code.UPSTREAM_ERROR)
    return Refusal(code, f"{error['code']}: {error['message']}")
