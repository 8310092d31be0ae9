"""Google Veo: long-running operations. A filtered video is `done`, without an error and without a
sample; how much was filtered stands at another depth on Vertex."""

import re
from typing import Any, Final

from services.batch.providers import google
from services.batch.providers.calls import (
    ask,
    at,
    confirmed,
    look,
    not_offered,
    only_bytes,
    own_url,
    unreadable,
    url_of,
)
from services.batch.providers.port import (
    CancelAnswer,
    CreateAnswer,
    Done,
    Failed,
    FindAnswer,
    Http,
    Later,
    Order,
    Output,
    PollAnswer,
    Reply,
    Running,
    Submitted,
    Task,
    Traits,
    Unclear,
    Unsupported,
)
from services.core.catalog import Channel

_NAMES: Final = {
    "duration_seconds": "durationSeconds",
    "resolution": "resolution",
    "aspect_ratio": "aspectRatio",
    "negative_prompt": "negativePrompt",
    "seed": "seed",
}
_OPERATION: Final = re.compile(r"[\w.-]+(?:/[\w.-]+)*")  # safe in the path of a URL
_CANCELLED: Final = 1  # status code of an operation that was cancelled
_INVALID: Final = 3


class Veo:
    """`base_url` ends in `/v1beta`, or in `/publishers/google` on Vertex."""

    name = "veo"
    kinds = ("video",)
    traits = Traits(poll_min_s=5.0, poll_max_s=20.0, takes_urls=False, max_age_s=48 * 3600.0)

    def headers(self, channel: Channel) -> dict[str, str]:
        return google.headers(channel)

    def create(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        if problem := only_bytes(order, "image_init"):
            return problem
        instance = {"prompt": order.params["prompt"], **google.given_image(order, "image_init")}
        body = {"instances": [instance], "parameters": google.parameters(order.params, _NAMES)}
        reply = ask(
            http,
            "POST",
            url_of(channel, f"models/{order.model}:predictLongRunning"),
            headers=google.headers(channel),
            json=body,
            timeout_s=self.traits.create_s,
        )
        if not isinstance(reply, Reply):
            return reply
        name = at(reply.json(), "name")
        if not isinstance(name, str) or not _OPERATION.fullmatch(name) or ".." in name:
            return Unclear(message=unreadable(reply))
        return Submitted(upstream_id=name)

    def poll(self, http: Http, channel: Channel, task: Task) -> PollAnswer:
        headers = google.headers(channel)
        if google.on_vertex(channel):
            url = url_of(channel, f"models/{task.model}:fetchPredictOperation")
            named = {"operationName": task.upstream_id}
            reply = look(http, "POST", url, headers=headers, json=named)
        else:
            reply = look(http, "GET", url_of(channel, task.upstream_id), headers=headers)
        if not isinstance(reply, Reply):
            return reply
        told = reply.json()
        if not isinstance(at(told, "name"), str):
            return Later(message=unreadable(reply), status=reply.status)
        if at(told, "done") is not True:
            return Running(word=str(at(told, "metadata", "state") or ""))
        if error := at(told, "error"):
            return _failed(error)
        return _done(channel, at(told, "response"))

    def cancel(self, http: Http, channel: Channel, task: Task) -> CancelAnswer:
        if google.on_vertex(channel):
            return Unsupported()
        url = url_of(channel, task.upstream_id + ":cancel")
        reply = look(http, "POST", url, headers=google.headers(channel), json={})
        if not isinstance(reply, Reply):
            return not_offered(reply)
        return confirmed(self.poll(http, channel, task))

    def find(self, http: Http, channel: Channel, order: Order) -> FindAnswer:
        return Unsupported()


def _failed(error: Any) -> Failed:
    code = at(error, "code")
    return Failed(
        code=str(code),
        message=str(at(error, "message") or "the operation failed"),
        cancelled=code == _CANCELLED,
        moderated=code == _INVALID and "polic" in str(at(error, "message")).lower(),
    )


def _done(channel: Channel, response: Any) -> Done:
    inner = at(response, "generateVideoResponse") or response
    outputs = []
    for sample in at(inner, "generatedSamples") or []:
        if uri := at(sample, "video", "uri"):
            own = bool(own_url(channel, uri))
            outputs.append(Output(kind="video", url=str(uri), authorized=own))
    for video in at(inner, "videos") or []:
        if found := google.inline(video, "video"):
            outputs.append(found)
    filtered = at(inner, "raiMediaFilteredCount")
    return Done(outputs=tuple(outputs), filtered=not outputs and bool(filtered))
