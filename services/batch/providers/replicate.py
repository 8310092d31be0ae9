"""Replicate predictions. A prediction tells its webhook's URL, the one place for a reference of
ours: with a `callback_url`, a create whose reply was lost is found in the list of predictions."""

import re
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

import msgspec

from services.batch.providers.calls import (
    ask,
    at,
    bearer,
    confirmed,
    input_url,
    look,
    not_offered,
    own_url,
    unreadable,
    url_of,
)
from services.batch.providers.port import (
    Absent,
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
    Refused,
    Reply,
    Running,
    Submitted,
    Task,
    Traits,
    Unclear,
    Unsupported,
)
from services.core.catalog import Channel

_NAMES: Final = {"n": "num_outputs", "duration_seconds": "duration", "input": "text"}
_INPUTS: Final = {"image": "image", "mask": "mask", "image_init": "image", "file": "audio"}
_RUNNING: Final = ("starting", "processing", "queued")
_CANCELLED: Final = ("canceled", "aborted")
_MODERATED: Final = re.compile(r"nsfw|sensitive|flagged|E005", re.I)
_PAGES_MAX: Final = 10
_OUTPUTS: Final = {"speech": "audio"}


class Replicate:
    """`base_url` ends in `/v1`. A model is `owner/name`, `owner/name:version` or a version."""

    name = "replicate"
    kinds = ("image", "video", "speech")
    traits = Traits(poll_min_s=1.0, poll_max_s=15.0, max_age_s=3600.0)

    def __init__(self, callback_url: str = "") -> None:
        self._callback_url = callback_url

    def headers(self, channel: Channel) -> dict[str, str]:
        return bearer(channel)

    def create(self, http: Http, channel: Channel, order: Order) -> CreateAnswer:
        body: dict[str, Any] = {"input": _input(order)}
        path = f"models/{order.model}/predictions"
        if ":" in order.model or "/" not in order.model:
            body["version"], path = order.model.rpartition(":")[2], "predictions"
        if self._callback_url:
            body["webhook"] = f"{self._callback_url}?ref={quote(order.client_ref)}"
            body["webhook_events_filter"] = ["completed"]
        url, timeout_s = url_of(channel, path), self.traits.create_s
        reply = ask(http, "POST", url, headers=bearer(channel), json=body, timeout_s=timeout_s)
        if not isinstance(reply, Reply):
            if isinstance(reply, Refused) and _MODERATED.search(reply.message):
                return msgspec.structs.replace(reply, moderated=True)
            return reply
        found = at(reply.json(), "id")
        if not isinstance(found, str) or not found.isalnum():
            return Unclear(message=unreadable(reply))
        return Submitted(upstream_id=found)

    def poll(self, http: Http, channel: Channel, task: Task) -> PollAnswer:
        one = url_of(channel, f"predictions/{task.upstream_id}")
        reply = look(http, "GET", one, headers=bearer(channel))
        return _verdict(reply, task) if isinstance(reply, Reply) else reply

    def cancel(self, http: Http, channel: Channel, task: Task) -> CancelAnswer:
        url = url_of(channel, f"predictions/{task.upstream_id}/cancel")
        reply = look(http, "POST", url, headers=bearer(channel))
        if not isinstance(reply, Reply):
            return not_offered(reply)
        return confirmed(_verdict(reply, task))

    def find(self, http: Http, channel: Channel, order: Order) -> FindAnswer:
        if not self._callback_url:
            return Unsupported()
        url = url_of(channel, "predictions")
        for _ in range(_PAGES_MAX):
            reply = look(http, "GET", url, headers=bearer(channel))
            if not isinstance(reply, Reply):
                return reply if isinstance(reply, Later) else Unsupported()
            told = reply.json()
            results = at(told, "results")
            if not isinstance(results, list):
                return Later(message=unreadable(reply), status=reply.status)
            for entry in results:
                webhook = str(at(entry, "webhook") or "")
                if order.client_ref in parse_qs(urlsplit(webhook).query).get("ref", []):
                    return Submitted(upstream_id=str(at(entry, "id")))
            url = own_url(channel, at(told, "next"))
            if not url:
                return Absent()
        return Later(message=f"not among the newest {_PAGES_MAX} pages of predictions")


def _input(order: Order) -> dict[str, Any]:
    given = {
        _NAMES.get(name, name): value for name, value in order.params.items() if name not in _INPUTS
    }
    for name, theirs in _INPUTS.items():
        if url := input_url(order, name):
            given[theirs] = url
    return given


def _verdict(reply: Reply, task: Task) -> PollAnswer:
    told = reply.json()
    word = str(at(told, "status") or "").lower()
    if not word:
        return Later(message=unreadable(reply), status=reply.status)
    if word == "succeeded":
        output = at(told, "output")
        urls = output if isinstance(output, list) else [output]
        kind = _OUTPUTS.get(task.kind, task.kind)
        made = tuple(Output(kind=kind, url=url) for url in urls if isinstance(url, str) and url)
        return Done(outputs=made)
    if word == "failed" or word in _CANCELLED:
        message = str(at(told, "error") or f"the prediction is {word}")
        moderated = bool(_MODERATED.search(message))
        return Failed(message=message, moderated=moderated, cancelled=word in _CANCELLED)
    return Running(started=word != "starting", word="" if word in _RUNNING else word)
