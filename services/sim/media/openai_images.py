"""OpenAI images: generations and edits, answered at once. No client reference."""

from base64 import b64encode
from hashlib import sha256
from typing import Any, Final

from services.sim.media import made, multipart
from services.sim.media.jobs import Ask, Job
from services.sim.media.shape import (
    Call,
    Reply,
    Route,
    Vendor,
    body_of,
    count_in,
    file_url,
    json_reply,
    size_in,
    text_in,
)
from services.sim.prompt import BadRequest, tokens

_KINDS: Final = {401: "invalid_request_error", 429: "requests", 500: "server_error"}


def refuse(status: int, message: str, code: str = "", param: str = "") -> Reply:
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": param or None, "code": code or None}
    return json_reply(status, {"error": error})


def policy() -> Reply:
    message = "Your request was rejected by the safety system."
    error = {"message": message, "type": "image_generation_user_error", "param": None}
    return json_reply(400, {"error": {**error, "code": "moderation_blocked"}})


VENDOR: Final = Vendor(name="openai-images", id_form="img_{}", refuse=refuse, policy=policy)


def _generation(call: Call) -> Ask:
    return _ask(body_of(call), b"")


def _edit(call: Call) -> Ask:
    form = multipart.parse(call.request.headers.get("content-type", ""), call.request.body)
    images = form.files.get("image", []) if form else []
    if form is None or not images:
        raise BadRequest("Missing required parameter: 'image'.", "image")
    given = b"".join(sha256(data).digest() for data in images + form.files.get("mask", []))
    return _ask(form.fields, given)


def _ask(body: dict[str, Any], inputs: bytes) -> Ask:
    if str(body.get("stream", "")).lower() == "true":
        raise BadRequest("Streamed images are not simulated.", "stream")
    prompt, count = text_in(body, "prompt"), count_in(body, "n")
    width, height = size_in(body, "size", "1024x1024")
    return Ask(
        operation="image",
        model=text_in(body, "model"),
        prompt=prompt,
        mime="image/png",
        count=count,
        width=width,
        height=height,
        units={"images": count},
        inputs=inputs,
        more={
            "as_url": body.get("response_format") == "url",
            "quality": str(body.get("quality", "auto")),
        },
    )


def _reply(call: Call, job: Job) -> Reply:
    ask, data = job.ask, []
    for index in range(job.outputs):
        if ask.more["as_url"]:
            entry = {"url": file_url(call, job, index)}
        else:
            entry = {"b64_json": b64encode(made.spoiled(job, index)).decode()}
        data.append(entry)
    text = tokens(len(ask.prompt.encode()))
    output = 272 * job.outputs
    usage = {
        "input_tokens": text,
        "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
        "output_tokens": output,
        "total_tokens": text + output,
    }
    told = {"size": f"{ask.width}x{ask.height}", "quality": ask.more["quality"]}
    fixed = {"background": "opaque", "output_format": "png"}
    return json_reply(
        200, {"created": int(job.created), "data": data, "usage": usage} | told | fixed
    )


def _route(path: str, read: Any) -> Route:
    return Route(
        vendor=VENDOR,
        method="POST",
        path=path,
        operation="create",
        read=read,
        reply=_reply,
        at_once=True,
    )


ROUTES: Final = (
    _route("/v1/images/generations", _generation),
    _route("/v1/images/edits", _edit),
)
