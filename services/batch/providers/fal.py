"""The queue of fal. There is no failed state: a failure is COMPLETED, with an error on the
response. No client reference."""

from typing import Any, Final

import msgspec

from services.batch.providers.calls import (
    ask,
    at,
    confirmed,
    input_url,
    look,
    not_offered,
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
    NoReply,
    NotConnected,
    Order,
    Output,
    PollAnswer,
    Refused,
    Reply,
    Running,
    Submitted,
    Task,
    TooLate,
    Traits,
    Unclear,
    Unsupported,
    poll_failed,
)
from services.core.catalog import Channel

_NAMES: Final = {
    "n": "num_images",
    "duration_seconds": "duration",
    "size": "image_size",
    "input": "text",
}
_INPUTS: Final = {
    "image": "image_url",
    "mask": "mask_url",
    "image_init": "image_url",
    "file": "audio_url",
}
_WAITING, _RUNNING = "IN_QUEUE", "IN_PROGRESS"
_POLICY: Final = "content_policy_violation"
_ERROR_TYPE: Final = "x-fal-error-type"
_CANCELLED: Final = "request_cancelled"


class Fal:
    """`base_url` is `https://queue.fal.run`; a model is `owner/app` or `owner/app/path`."""

    name = "fal"
    kinds = ("image", "video", "speech")
    traits = Traits(poll_min_s=1.0, poll_max_s=15.0, max_age_s=24 * 3600.0)

    def headers(self, channel: Channel) -> dict[str, str]:
        return {"authorization": f"Key {channel.credential}"}

    def create(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        # Its own retries would make a generation that nobody asked for twice.
        headers = {**self.headers(channel), "x-fal-no-retry": "1"}
        url, timeout_s = url_of(channel, order.model), self.traits.create_s
        reply = ask(http, "POST", url, headers=headers, json=_input(order), timeout_s=timeout_s)
        if not isinstance(reply, Reply):
            if isinstance(reply, Refused) and _POLICY in reply.message:
                return msgspec.structs.replace(reply, moderated=True)
            return reply
        told = reply.json()
        found = at(told, "request_id")
        links = {
            name: own_url(channel, at(told, f"{name}_url"))
            for name in ("status", "response", "cancel")
        }
        if not isinstance(found, str) or not found or not all(links.values()):
            return Unclear(message=unreadable(reply))
        return Submitted(upstream_id=found, links=links)

    def poll(self, http: Http, channel: Channel, task: Task) -> PollAnswer:
        headers = self.headers(channel)
        reply = look(http, "GET", task.links["status"], headers=headers)
        if not isinstance(reply, Reply):
            return reply
        word = str(at(reply.json(), "status") or "").upper()
        if not word:
            return Later(message=unreadable(reply), status=reply.status)
        if word != "COMPLETED":
            known = word in (_WAITING, _RUNNING)
            return Running(started=word != _WAITING, word="" if known else word)
        try:
            response = http.call("GET", task.links["response"], headers=headers)
        except (NotConnected, NoReply) as ex:
            return Later(message=str(ex))
        return _result(response)

    def cancel(self, http: Http, channel: Channel, task: Task) -> CancelAnswer:
        reply = look(http, "PUT", task.links["cancel"], headers=self.headers(channel))
        if isinstance(reply, Later) and "ALREADY_COMPLETED" in reply.message:
            return TooLate()
        if not isinstance(reply, Reply):
            return not_offered(reply)
        return confirmed(self.poll(http, channel, task))

    def find(self, http: Http, channel: Channel, order: Order) -> FindAnswer:
        return Unsupported()


def _input(order: Order) -> dict[str, Any]:
    given = {
        _NAMES.get(name, name): value for name, value in order.params.items() if name not in _INPUTS
    }
    if "x" in str(given.get("image_size", "")):
        width, _, height = str(given["image_size"]).partition("x")
        given["image_size"] = {"width": int(width), "height": int(height)}
    for name, theirs in _INPUTS.items():
        if url := input_url(order, name):
            given[theirs] = url
    return given


def _result(reply: Reply) -> PollAnswer:
    told = reply.json()
    if reply.ok:
        if not isinstance(told, dict):
            return Later(message=unreadable(reply), status=reply.status)
        return Done(outputs=_outputs(told))
    kind = reply.headers.get(_ERROR_TYPE, "") or str(at(told, "detail", 0, "type") or "")
    if not kind and (reply.status not in (400, 422) or at(told, "detail") is None):
        return poll_failed(reply)
    detail = at(told, "detail")
    message = at(detail, 0, "msg") or detail or "the request failed"
    return Failed(
        code=kind,
        message=str(message),
        moderated=kind == _POLICY,
        cancelled=kind == _CANCELLED,
    )


def _outputs(told: dict[str, Any]) -> tuple[Output, ...]:
    """Files by where apps put them: `images`, `image`, `videos`, `video`, `audio`."""
    found = []
    for kind in ("image", "video", "audio"):
        many = told.get(kind + "s")
        for entry in many if isinstance(many, list) else [told.get(kind)]:
            url = at(entry, "url") if isinstance(entry, dict) else entry
            if isinstance(url, str) and url:
                found.append(Output(kind=kind, url=url))
    return tuple(found)
